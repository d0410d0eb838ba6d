"""What each way of fine-tuning gains and forgets: sentiment in English and Chinese from small encoders pretrained here.

    python -m benchmarks.finetune_quality --data-root DIR [--language en|zh] [--folder DIR] [--seeds N]

A small BERT is pretrained by masked language modelling on text of the language, then fine-tuned for sentiment (SST-2,
ChnSentiCorp) in four ways (everything, the encoder alone, the head alone, LoRA), and beside it everything by a plain
loop of transformers from the same weights. One JSON line: for each way the accuracy on the test split (mean of the
seeds, its 95 % interval by the items and the seeds' range), the share of parameters that is trained, and what is
forgotten: the loss of the hidden tokens of held-out text, with the pretrained head on the fine-tuned body, less that of
the pretrained model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.harness import machine
from llmscale.evaluate.statistics import proportion_interval

SIZES = {"layers": 3, "hidden_size": 128, "heads": 4, "ffn_size": 512}
LENGTHS = {"en": 64, "zh": 96}
STEPS, EPOCHS, BATCH = 800, 2, 32
RATES = {"full": 5e-4, "encoder": 5e-4, "head": 5e-3, "lora": 2e-3}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "encoder": {"finetune": {"train": "encoder"}},
    "head": {"finetune": {"train": "head"}},
    "lora": {"finetune": {"lora": {"rank": 8, "alpha": 16, "targets": ["all"]}}},
}
_LABELS = {"en": ["negative", "positive"], "zh": ["负面", "正面"]}


def rows(root: Path, language: str, split: str) -> Iterator[dict[str, str]]:
    """Texts with their labels."""
    path = root / ("sst2/{}.tsv" if language == "en" else "chnsenticorp/{}.txt").format(split)
    for line in path.read_text(encoding="utf-8").splitlines():
        text, _, label = line.rpartition("\t")
        if label in ("0", "1"):
            yield {"text": text, "label": _LABELS[language][int(label)]}


def plain(root: Path, language: str) -> Iterator[str]:
    """Text of the language for pretraining."""
    if language == "en":
        for file in sorted((root / "wikitext-2").glob("*.txt")):
            yield from (line for line in file.read_text(encoding="utf-8").splitlines() if len(line) > 60)
        stories = next((root / "tinystories").glob("*.txt")).read_text(encoding="utf-8")
        yield from stories[:1_000_000].split("<|endoftext|>")
        return
    for split in ("dev", "test"):
        path = root / "csl_title" / f"{split}.tsv"
        yield from (line.replace("\t", "。") for line in path.read_text(encoding="utf-8").splitlines())
    for file in sorted((root / "zh_novels").glob("*.txt")):
        yield from (line for line in file.read_text(encoding="utf-8")[:400_000].splitlines() if len(line) > 20)


class Bench:
    """One language in a folder."""

    def __init__(self, root: Path, language: str, folder: Path, steps: int) -> None:
        self.language, self.folder, self.steps = language, folder, steps
        self.length = LENGTHS[language]
        folder.mkdir(parents=True, exist_ok=True)
        self.splits = {split: list(rows(root, language, split)) for split in ("train", "dev", "test")}
        for split, records in self.splits.items():
            self._write(split, records)
        text = [record["text"] for record in self.splits["train"]] + list(plain(root, language))
        self._write("plain", [{"text": each} for number, each in enumerate(text) if number % 25])
        self._write("heldout", [{"text": each} for each in text[::25]])

    def _write(self, name: str, records: list[dict[str, str]]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (self.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def _source(self, name: str, **settings: Any) -> dict[str, Any]:
        return {"kind": "jsonl", "paths": [f"{name}.jsonl"], **settings}

    def train(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """A run by the command line; its summary."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings, allow_unicode=True))
        done = self.folder / "runs" / name / "summary.json"
        if not done.is_file():
            command = [sys.executable, "-m", "llmscale", "train", path.name]
            subprocess.run(command, cwd=self.folder, check=True, stderr=(self.folder / f"{name}.log").open("w"))
        found: dict[str, Any] = json.loads(done.read_text())
        return found

    def pretrain(self) -> None:
        """The encoder that all ways start from."""
        data = {
            "sources": [self._source("plain")],
            "evaluation": [self._source("heldout")],
            "tokenizer": {"train": {"vocab_size": 4000, "model": "unigram"}},
            "sequence_length": self.length,
            "lanes": 16,
            "shuffle_buffer": 2048,
        }
        self.train(
            "pretrained",
            {
                "run": {"directory": "runs/pretrained", "seed": 1},
                "data": data,
                "model": {"family": "bert", **SIZES, "max_positions": self.length, "next_sentence": False},
                "objective": {"name": "masked"},
                "optimizer": {"lr": 2e-3, "weight_decay": 0.01, "clip": 1.0},
                "schedule": {"name": "cosine", "warmup_steps": 40},
                "train": {"steps": self.steps, "global_batch": 64, "micro_batch": 64},
            },
        )

    def finetune(self, way: str, seed: int) -> dict[str, Any]:
        """Accuracy on the test split, what is forgotten, and seconds."""
        began, name = time.perf_counter(), f"{way}-{seed}"
        fields = {"fields": {"label": "label"}}
        data = {
            "sources": [self._source("train", **fields)],
            "evaluation": [self._source("test", **fields)],
            "order": "finite",
            "sequence_length": self.length,
        }
        summary = self.train(
            name,
            {
                "run": {"directory": f"runs/{name}", "seed": seed},
                "data": data,
                "model": {"dropout": 0.1, "attention_dropout": 0.0},
                "objective": {"name": "classification", "labels": _LABELS[self.language], "dropout": 0.1},
                "optimizer": {"lr": RATES[way], "weight_decay": 0.01, "clip": 1.0},
                "schedule": {"name": "cosine", "warmup_steps": 20, "final_fraction": 0.0},
                "train": {
                    "epochs": EPOCHS,
                    "global_batch": BATCH,
                    "micro_batch": BATCH,
                    "init_from": "runs/pretrained",
                },
                "checkpoint": {"interval": 0},
                **WAYS[way],
            },
        )
        seconds = time.perf_counter() - began
        return {"accuracy": _accuracy(summary), "forgotten": self.forgotten(name), "seconds": seconds}

    def forgotten(self, name: str) -> float:
        """Nats for each hidden token of held-out text that the body of a run has lost."""
        return self._hidden_tokens(name) - self._hidden_tokens("pretrained")

    def _hidden_tokens(self, name: str) -> float:
        from llmscale.checkpoint.model import load_model
        from llmscale.evaluate.commands import figures_on

        base = load_model(self.folder / "runs" / "pretrained")
        if name != "pretrained":
            body = dict(load_model(self._whole(name)).model.named_parameters())
            with torch.no_grad():
                for key, parameter in base.model.named_parameters():
                    if key in body and not key.startswith("head."):
                        parameter.copy_(body[key])
        heldout = (str(self.folder / "heldout.jsonl"),)
        return float(figures_on(base, heldout, 32)[0]["loss"])

    def _whole(self, name: str) -> Path:
        """A run, or a checkpoint with its factors merged into the weights."""
        run, merged = self.folder / "runs" / name, self.folder / "merged" / name
        if not name.startswith("lora"):
            return run
        if not merged.is_dir():
            command = [sys.executable, "-m", "llmscale", "checkpoint", "merge", str(run), str(merged)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return merged

    def transformers(self, seed: int) -> float:
        """Accuracy of everything trained by a plain loop from the exported weights."""
        import transformers
        from torch.utils.data import DataLoader

        exported = self.folder / "exported"
        if not exported.is_dir():
            command = [sys.executable, "-m", "llmscale", "export", "runs/pretrained", "exported"]
            subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        torch.manual_seed(seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            exported, num_labels=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0
        )
        labels = _LABELS[self.language]

        def collate(records: list[dict[str, str]]) -> dict[str, Any]:
            texts = [record["text"] for record in records]
            batch = tokenizer(texts, truncation=True, max_length=self.length, padding=True, return_tensors="pt")
            return {**batch, "labels": torch.tensor([labels.index(record["label"]) for record in records])}

        generator = torch.Generator().manual_seed(seed)
        training = DataLoader(self.splits["train"], BATCH, True, generator=generator, collate_fn=collate)
        steps = EPOCHS * len(training)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATES["full"], weight_decay=0.01)
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 20, steps)
        model.train()
        for _ in range(EPOCHS):
            for batch in training:
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(**batch).logits.argmax(1) == batch["labels"]).sum())
                for batch in DataLoader(self.splits["test"], 64, collate_fn=collate)
            )
        return right / len(self.splits["test"])


def _accuracy(summary: dict[str, Any]) -> float:
    return float(summary["evaluation"]["accuracy"])


def of(accuracies: list[float], items: int) -> dict[str, Any]:
    """Mean, interval by the items, and range of the seeds."""
    mean = statistics.fmean(accuracies)
    interval = proportion_interval(round(mean * items), items)
    return {
        "accuracy": round(mean, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "seeds": [round(each, 4) for each in accuracies],
    }


def measure(root: Path, language: str, folder: Path, seeds: int, steps: int) -> dict[str, Any]:
    """All ways of one language."""
    bench = Bench(root, language, folder / language, steps)
    bench.pretrain()
    items = len(bench.splits["test"])
    found: dict[str, Any] = {"items": items}
    for way in WAYS:
        runs = [bench.finetune(way, seed) for seed in range(1, seeds + 1)]
        found[way] = {
            **of([run["accuracy"] for run in runs], items),
            "forgotten_nats": round(statistics.fmean(run["forgotten"] for run in runs), 4),
            "seconds": round(statistics.median(run["seconds"] for run in runs), 1),
        }
        print(language, way, found[way], file=sys.stderr, flush=True)
    found["transformers"] = of([bench.transformers(seed) for seed in range(1, seeds + 1)], items)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder with sst2 and chnsenticorp")
    parser.add_argument("--language", choices=sorted(LENGTHS), help="both where not given")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; what is done there is not done again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of pretraining")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        languages = [arguments.language] if arguments.language else sorted(LENGTHS)
        found = {
            each: measure(arguments.data_root, each, folder.absolute(), arguments.seeds, arguments.steps)
            for each in languages
        }
    print(json.dumps({**found, "machine": machine()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
