"""The two sides of `benchmarks.finetune`: a run of this project, and transformers' Trainer on the same rows."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

BATCH, LENGTH, VOCABULARY, LR = 32, 128, 4096, 1e-4
SIZES = {"layers": 4, "hidden_size": 256, "heads": 4, "max_positions": LENGTH}
MICRO_BATCHES = {"seq2seq": 16}
"""Rows that this project takes at a time, where its default of 8 is not the best."""
MODELS = {"classification": "bert", "head": "bert", "lora": "bert", "seq2seq": "t5"}
SECTIONS: dict[str, dict[str, Any]] = {
    "head": {"train": "head"},
    "lora": {"lora": {"rank": 8, "alpha": 16, "targets": ["all"]}},
}
"""What is fine-tuned of a body that is trained already."""
Step = Callable[[], float]


def prepare(kind: str, corpora: Path, folder: Path, rows: int | None) -> None:
    """Write rows, the tokenizer of both sides and, where a head is to be trained alone, a body to start from."""
    from data_pipeline.tokenizer import prepare_tokenizer

    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for row in itertools.islice(_rows(kind, corpora), rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    config = _config(kind, folder)
    roles = config.objective.roles(LENGTH)
    prepare_tokenizer(config.data, folder / "tokenizer", lambda text: None, roles, None)
    if kind in SECTIONS:
        # One step of a language model: what the body has learned changes no speed.
        body = _config(kind, folder).model_dump(mode="json") | {
            "objective": {"name": "masked"},
            "finetune": None,
            "run": {"directory": str(folder / "body"), "device": "cpu"},
        }
        body["train"] |= {"init_from": None, "steps": 1}
        body["model"] = {"family": "bert", **SIZES, "next_sentence": False}
        (folder / "body.json").write_text(json.dumps(body))
        command = [sys.executable, "-m", "llmscale", "train", str(folder / "body.json")]
        subprocess.run(command, check=True, stdout=sys.stderr)


def _config(kind: str, folder: Path) -> Any:
    from llmscale.config import parse_config

    begun = {"init_from": str(folder / "body")} if kind in SECTIONS else {}
    objective: dict[str, Any] = {"name": "seq2seq", "target_length": 64}
    fields: dict[str, Any] = {"target_field": "target"}
    if kind != "seq2seq":
        objective, fields = {"name": "classification", "labels": ["0", "1"]}, {"fields": {"label": "label"}}
    source = {"kind": "jsonl", "paths": [str(folder / "rows.jsonl")], "field": "text", **fields}
    family = {"next_sentence": False} if MODELS[kind] == "bert" else {}
    return parse_config(
        {
            "run": {"directory": str(folder / "run"), "device": "cpu"},
            "data": {
                "sources": [source],
                "order": "finite",
                "sequence_length": LENGTH,
                "workers": 0,
                "tokenizer": {"train": {"vocab_size": VOCABULARY}},
            },
            "model": {"family": MODELS[kind], **SIZES, **family},
            "objective": objective,
            "optimizer": {"lr": LR},
            "schedule": {"name": "constant"},
            "train": {
                "steps": 100_000,
                "global_batch": BATCH,
                "micro_batch": MICRO_BATCHES.get(kind, 8),
                **begun,
            },
            **({"finetune": SECTIONS[kind]} if kind in SECTIONS else {}),
        }
    )


def build_ours(kind: str, folder: Path) -> Step:
    """A run as `llmscale train` sets it up."""
    from llmscale.distributed.process_group import join, read_world
    from llmscale.engine.allocator import keep_large_blocks
    from llmscale.train.run_directory import RunDirectory
    from llmscale.train.setup import set_up
    from llmscale.train.signals import PreemptionFlag

    keep_large_blocks()
    config = _config(kind, folder)
    run, world, stack = RunDirectory(config.run.directory), read_world("cpu"), contextlib.ExitStack()
    join(world)
    run.create(config)
    trainer = set_up(config, run, world, 1, stack.enter_context(PreemptionFlag()), stack).trainer
    return lambda: trainer.one_step().loss


def build_theirs(kind: str, folder: Path) -> Step:
    """transformers' Trainer, whose loop is stopped after each step by a callback."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    go, done, losses = threading.Semaphore(0), threading.Semaphore(0), []

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.acquire()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.release()

    class Noted(Trainer):
        def training_step(self, *arguments: Any, **settings: Any) -> torch.Tensor:
            loss = super().training_step(*arguments, **settings)
            losses.append(loss.item())
            return loss

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=100_000,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        logging_strategy="no",
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    rows, pad, words = _encoded(kind, folder)
    model = _their_model(kind, words)
    trainer = Noted(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=lambda batch: _padded(batch, pad),
        callbacks=[Turns()],
    )
    failures: list[Exception] = []

    def run() -> None:
        try:
            trainer.train()
        except Exception as error:
            failures.append(error)
            done.release()

    threading.Thread(target=run, daemon=True).start()

    def step() -> float:
        go.release()
        done.acquire()
        if failures:
            raise failures[0]
        return losses[-1]

    return step


def _their_model(kind: str, words: int) -> torch.nn.Module:
    import transformers

    hidden, layers, heads = SIZES["hidden_size"], SIZES["layers"], SIZES["heads"]
    if kind == "seq2seq":
        config = transformers.T5Config(
            vocab_size=words, d_model=hidden, d_kv=hidden // heads, d_ff=4 * hidden, num_layers=layers,
            num_heads=heads, dropout_rate=0.0, decoder_start_token_id=0,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    bert = transformers.BertConfig(
        vocab_size=words, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(bert)
    for name, parameter in model.named_parameters() if kind == "head" else ():
        parameter.requires_grad_(name.startswith(("bert.pooler", "classifier")))
    return _with_factors(model) if kind == "lora" else model


def _with_factors(model: Any) -> torch.nn.Module:
    """With peft's LoRA beside all linear layers of the encoder; the pooler and the classifier are trained whole."""
    import peft

    section = SECTIONS["lora"]["lora"]
    settings = peft.LoraConfig(
        r=section["rank"],
        lora_alpha=section["alpha"],
        target_modules=r".*encoder\.layer\.\d+\..*(query|key|value|dense)",
        modules_to_save=["pooler", "classifier"],
    )
    return peft.get_peft_model(model, settings)


def _encoded(kind: str, folder: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Rows as this project's tokenizer and objectives make them, the token that fills up, and how many tokens
    there are."""
    from data_pipeline.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    special = tokenizer.special
    found: list[dict[str, Any]] = []
    for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = tokenizer.encode(row["text"])
        if kind == "seq2seq":
            labels = [*tokenizer.encode(row["target"])[:63], special["eos"]]
            found.append({"input_ids": [*ids[: LENGTH - 1], special["eos"]], "labels": labels})
        else:
            ids = [special["cls"], *ids[: LENGTH - 2], special["sep"]]
            found.append({"input_ids": ids, "labels": int(row["label"])})
    return found, special["pad"], tokenizer.vocab_size


def _padded(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest row."""

    def stacked(values: list[list[int]], fill: int) -> torch.Tensor:
        longest = max(map(len, values))
        return torch.tensor([each + [fill] * (longest - len(each)) for each in values])

    ids = [row["input_ids"] for row in rows]
    labels = [row["labels"] for row in rows]
    return {
        "input_ids": stacked(ids, pad),
        "attention_mask": stacked([[1] * len(each) for each in ids], 0),
        "labels": stacked(labels, -100) if isinstance(labels[0], list) else torch.tensor(labels),
    }


def _rows(kind: str, corpora: Path) -> Iterator[dict[str, Any]]:
    if kind == "seq2seq":
        sides = ((corpora / f"multi30k/train.{end}").read_text(encoding="utf-8").splitlines() for end in ("en", "de"))
        for english, german in zip(*sides, strict=True):
            yield {"text": english, "target": german}
        return
    with open(corpora / "sst2" / "train.tsv", encoding="utf-8") as file:
        for line in file:
            text, _, label = line.rstrip("\n").rpartition("\t")
            yield {"text": text, "label": label}
