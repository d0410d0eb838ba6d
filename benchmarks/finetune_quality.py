"""What each way of fine-tuning gains and forgets: sentiment in English and Chinese from small encoders pretrained here.

    python -m benchmarks.finetune_quality --data-root DIR [--language en|zh] [--folder DIR] [--seeds N]

A small BERT is pretrained by masked language modelling on text of the language, then fine-tuned for sentiment (SST-2,
ChnSentiCorp) in four ways (everything, the encoder alone, the head alone, LoRA). Beside it stand everything by a plain
loop of transformers from the same weights, and everything and the head alone from drawn weights, which tell what the
pretraining is worth. One JSON line: for each way the accuracy on the test split (mean of the seeds, its 95 % interval
over the items, and each seed's), the share of parameters that is trained, and what is forgotten: the loss of the hidden
tokens of held-out text, with the pretrained head on the fine-tuned body, less that of the pretrained model. Accuracies
are those of the exported models, as transformers reads them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.harness import machine
from llmscale.checkpoint.merging import merge
from llmscale.checkpoint.model import load_model
from llmscale.evaluate.commands import figures_on
from llmscale.evaluate.statistics.means import mean_interval
from llmscale.evaluate.statistics.paired import paired_difference
from llmscale.evaluate.statistics.training_noise import training_noise
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.interface import Run

SIZES = {"layers": 3, "hidden_size": 128, "heads": 4, "ffn_size": 512}
LENGTH = 64
TOKENIZERS: dict[str, dict[str, Any]] = {
    "en": {"vocab_size": 4000},
    "zh": {"vocab_size": 6000, "character_coverage": 0.9995},
}
STEPS, BATCH = 2500, 32
EPOCHS = {"en": 2, "zh": 1}
PRETRAINING_RATE, WARMUP, DECAY, BETAS = 1.5e-3, 20, 0.01, (0.9, 0.95)
RATES = {"full": 5e-4, "encoder": 5e-4, "head": 5e-3, "lora": 2e-3}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "encoder": {"finetune": {"train": "encoder"}},
    "head": {"finetune": {"train": "head"}},
    "lora": {"finetune": {"lora": {"rank": 8, "alpha": 16, "targets": ["all"]}}},
}
PRETRAINED, DRAWN = "pretrained", "drawn"
CONTROLS = ("head", "full")
"""Ways that start from drawn weights, too."""
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

    def __init__(self, root: Path, language: str, folder: Path, threads: int) -> None:
        self.language, self.folder, self.threads = language, folder, threads
        self.epochs = EPOCHS[language]
        folder.mkdir(parents=True, exist_ok=True)
        self.splits = {split: list(rows(root, language, split)) for split in ("train", "dev", "test")}
        for split, records in self.splits.items():
            self._write(split, records)
        text = list(plain(root, language))
        kept = [each for number, each in enumerate(text) if number % 25]
        kept += [record["text"] for record in self.splits["train"]]
        self._write("plain", [{"text": each} for each in kept])
        self._write("heldout", [{"text": each} for each in text[::25]])

    def _write(self, name: str, records: list[dict[str, str]]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (self.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def _source(self, name: str, **settings: Any) -> dict[str, Any]:
        return {"kind": "jsonl", "paths": [str(self.folder / f"{name}.jsonl")], **settings}

    def train(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """The summary of a run, which is made now, in this process, where an earlier start has not finished it."""
        settings["run"] |= {"directory": str(self.folder / "runs" / name), "device": "cpu", "threads": self.threads}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings, allow_unicode=True))
        run = Run(path)
        if not run.directory.summary_file.is_file():
            run.train()
        found: dict[str, Any] = json.loads(run.directory.summary_file.read_text())
        return found

    def pretrain(self, name: str, steps: int, rate: float) -> dict[str, Any]:
        """An encoder that ways start from; its summary."""
        tokenizer: dict[str, Any] = {"train": {"model": "unigram", **TOKENIZERS[self.language]}}
        if name != PRETRAINED:
            path = self.folder / "runs" / PRETRAINED / "tokenizer" / "tokenizer.model"
            tokenizer = {"kind": "sentencepiece", "path": str(path)}
        data = {
            "sources": [self._source("plain")],
            "evaluation": [self._source("heldout")],
            "tokenizer": tokenizer,
            "sequence_length": LENGTH,
            "lanes": 16,
            "shuffle_buffer": 2048,
        }
        return self.train(
            name,
            {
                "run": {"seed": 1},
                "data": data,
                "model": {"family": "bert", **SIZES, "max_positions": LENGTH, "next_sentence": False},
                "objective": {"name": "masked"},
                "optimizer": {"lr": rate, "weight_decay": DECAY, "clip": 1.0},
                "schedule": {"name": "cosine", "warmup_steps": min(100, steps // 2)},
                "train": {"steps": steps, "global_batch": BATCH, "micro_batch": BATCH},
                "evaluation": {"interval": 500},
                "checkpoint": {"interval": 500, "keep": 1},
            },
        )

    def finetune(self, way: str, start: str, seed: int) -> dict[str, Any]:
        """Which texts of the test split are labelled right, what is forgotten, and the share that is trained."""
        name = f"{way}-{start}-{seed}"
        return self._kept(name, lambda: self._finetune(way, start, seed, name))

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was found in an earlier start of the program, or is found now."""
        path = self.folder / f"{name}-found.json"
        if not path.is_file():
            path.write_text(json.dumps(make()))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _finetune(self, way: str, start: str, seed: int, name: str) -> dict[str, Any]:
        fields = {"fields": {"label": "label"}}
        data = {
            "sources": [self._source("train", **fields)],
            "evaluation": [self._source("test", **fields)],
            "order": "finite",
            "sequence_length": LENGTH,
        }
        begun = self.folder / "runs" / start
        settings: dict[str, Any] = {
            "run": {"seed": seed},
            "data": data,
            "model": {"dropout": 0.1, "attention_dropout": 0.0},
            "objective": {"name": "classification", "labels": _LABELS[self.language], "dropout": 0.1},
            "optimizer": {"lr": RATES[way], "weight_decay": DECAY, "clip": 1.0, "betas": list(BETAS)},
            "schedule": {"name": "cosine", "warmup_steps": WARMUP, "final_fraction": 0.0},
            "train": {"epochs": self.epochs, "global_batch": BATCH, "micro_batch": BATCH, "init_from": str(begun)},
            "evaluation": {"batch": 64},
            "checkpoint": {"interval": 0},
            **WAYS[way],
        }
        if way == "head":
            # Without dropout in the body its vectors are computed once.
            settings["model"] = {"dropout": 0.0, "attention_dropout": 0.0}
        summary = self.train(name, settings)
        exported = self.folder / "exported" / name
        export_checkpoint(self.folder / "runs" / name, exported)
        right = self.labelled_right(exported)
        own, theirs = summary["evaluation"]["accuracy"], statistics.fmean(right)
        if abs(own - theirs) > 0.002:
            raise RuntimeError(f"{name} has an accuracy of {own}, but {theirs} where transformers reads it")
        forgotten = self.hidden_tokens(name) - self._before if start == PRETRAINED else 0.0
        return {
            "right": right,
            "forgotten": forgotten,
            "trained": summary["trained_parameters"] / summary["parameters"],
        }

    @cached_property
    def _before(self) -> float:
        return self.hidden_tokens(PRETRAINED)

    def hidden_tokens(self, name: str) -> float:
        """Nats for each hidden token of held-out text, by the body of a run and the pretrained head."""
        base = load_model(self.folder / "runs" / PRETRAINED)
        if name != PRETRAINED:
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
            merge(run, merged)
        return merged

    def labelled_right(self, exported: Path) -> list[bool]:
        """Which texts of the test split a model of transformers labels right."""
        import transformers

        model = transformers.AutoModelForSequenceClassification.from_pretrained(exported).eval()
        return self._labelled_right(model, transformers.AutoTokenizer.from_pretrained(exported))

    @torch.no_grad()
    def _labelled_right(self, model: Any, tokenizer: Any) -> list[bool]:
        found: list[bool] = []
        test = self.splits["test"]
        for first in range(0, len(test), 64):
            batch = self._batch(tokenizer, test[first : first + 64])
            found += (model(**batch).logits.argmax(1) == batch["labels"]).tolist()
        return found

    def _batch(self, tokenizer: Any, records: list[dict[str, str]]) -> dict[str, Any]:
        texts = [record["text"] for record in records]
        batch = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        labels = [_LABELS[self.language].index(record["label"]) for record in records]
        return {**batch, "labels": torch.tensor(labels)}

    def transformers(self, seed: int) -> dict[str, Any]:
        """Which texts are labelled right after everything was trained by a plain loop from the exported weights."""
        return self._kept(f"transformers-{seed}", lambda: {"right": self._transformers(seed)})

    def _transformers(self, seed: int) -> list[bool]:
        import transformers
        from torch.utils.data import DataLoader

        exported = self.folder / "exported" / PRETRAINED
        if not exported.is_dir():
            export_checkpoint(self.folder / "runs" / PRETRAINED, exported)
        torch.manual_seed(seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            exported, num_labels=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0
        )
        training = DataLoader(
            self.splits["train"],  # type: ignore[arg-type]
            BATCH,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=lambda records: self._batch(tokenizer, records),
        )
        parameters = list(model.parameters())
        groups = [
            {"params": [each for each in parameters if each.dim() > 1], "weight_decay": DECAY},
            {"params": [each for each in parameters if each.dim() == 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=RATES["full"], betas=BETAS)
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, self.epochs * len(training))
        model.train()
        for _ in range(self.epochs):
            for batch in training:
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        return self._labelled_right(model.eval(), tokenizer)


def _by_item(runs: list[dict[str, Any]]) -> list[float]:
    """How often each item is right, over the seeds."""
    return [statistics.fmean(each) for each in zip(*(run["right"] for run in runs), strict=True)]


def _by_seed(runs: list[dict[str, Any]]) -> list[float]:
    return [statistics.fmean(run["right"]) for run in runs]


def accuracy(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, its interval over the items, and each seed's."""
    interval = mean_interval(_by_item(runs), bounds=(0, 1))
    return {
        "accuracy": round(interval.value, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "seeds": [round(each, 4) for each in _by_seed(runs)],
    }


def difference(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """How much more accurate, with intervals over the items and over the seeds."""
    found: dict[str, Any] = {}
    over = {
        "items": paired_difference(_by_item(runs), _by_item(others)).interval(),
        "seeds": training_noise(_by_seed(runs), _by_seed(others), "seeds"),
    }
    for name, interval in over.items():
        if interval is not None:
            found["difference"] = round(interval.value, 4)
            found[f"interval_over_{name}"] = [round(interval.low, 4), round(interval.high, 4)]
    return found


def measure(root: Path, language: str, folder: Path, seeds: int, threads: int) -> dict[str, Any]:
    """All ways of one language."""
    bench = Bench(root, language, folder / language, threads)
    pretrained = bench.pretrain(PRETRAINED, STEPS, PRETRAINING_RATE)
    # One step of hardly any length: the values that were drawn.
    drawn = bench.pretrain(DRAWN, 1, 1e-12)
    found: dict[str, Any] = {
        "items": len(bench.splits["test"]),
        "commonest_label": round(_commonest(bench.splits["test"]), 4),
        "hidden_token_nats": {
            name: round(summary["evaluation"]["loss"], 4)
            for name, summary in ((PRETRAINED, pretrained), (DRAWN, drawn))
        },
    }
    numbers = range(1, seeds + 1)
    runs: dict[str, list[dict[str, Any]]] = {}
    for start, ways in ((PRETRAINED, tuple(WAYS)), (DRAWN, CONTROLS)):
        if start == DRAWN:
            theirs = [bench.transformers(seed) for seed in numbers]
            found["transformers"] = accuracy(theirs)
            found["full less transformers"] = difference(runs["full"], theirs)
            print(language, found, file=sys.stderr, flush=True)
        for way in ways:
            name = way if start == PRETRAINED else f"{way} from drawn weights"
            runs[name] = [bench.finetune(way, start, seed) for seed in numbers]
            found[name] = {
                **accuracy(runs[name]),
                "trained_share": round(runs[name][0]["trained"], 4),
                "forgotten_nats": round(statistics.fmean(run["forgotten"] for run in runs[name]), 4),
            }
            print(language, name, found[name], file=sys.stderr, flush=True)
    return found


def _commonest(records: list[dict[str, str]]) -> float:
    """The accuracy of always giving the commonest label."""
    labels = [record["label"] for record in records]
    return max(labels.count(label) for label in set(labels)) / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder with sst2 and chnsenticorp")
    parser.add_argument("--language", choices=sorted(TOKENIZERS), help="both where not given")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; what is done there is not done again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        languages = [arguments.language] if arguments.language else sorted(TOKENIZERS)
        found = {
            each: measure(arguments.data_root, each, folder.absolute(), arguments.seeds, arguments.threads)
            for each in languages
        }
    print(json.dumps({**found, "machine": machine()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
