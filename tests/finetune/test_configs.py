"""The shipped fine-tuning configs of texts and dialogues in miniature: each is run on small data of the form that it
names, those that start from another after that one."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import yaml

from llmscale.checkpoint.model import load_model
from tests.train.forked import run
from tests.train.runs import evaluations, metrics

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
SMALL = (
    "run.device=cpu", "run.threads=1", "model.layers=2", "model.hidden_size=32", "model.heads=2", "model.ffn_size=48",
    "optimizer.lr=0.01", "train.micro_batch=4", "train.global_batch=4", "data.workers=0", "evaluation.interval=4",
    "logging.interval=1",
)  # fmt: skip
SCRATCH = (
    "data.tokenizer.train.vocab_size=440", "data.tokenizer.train.model=bpe",
    "data.tokenizer.train.character_coverage=1.0",
)  # fmt: skip
STREAM = ("data.lanes=2", "data.shuffle_buffer=8", "schedule={name: constant}", "train.steps=8", "data.holdout=0.1")
CUTS = {
    "dialogue": ("data.sequence_length=128", "data.holdout=0.2", "schedule.warmup_steps=1", "train.epochs=1"),
    "pairs": ("data.sequence_length=96", "objective.target_length=24", "schedule.warmup_steps=1", "train.epochs=1"),
}


def write_data(folder: Path) -> None:
    draw = random.Random(4)
    english = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(200)]
    chinese = list("气和玉烛睿化著鸿明缇管一阳生郊禋盛礼燔柴毕旋轸凤凰城森罗仪卫振华缨")

    def words(count: int) -> str:
        return " ".join(draw.choices(english, k=count))

    def signs(count: int) -> str:
        return "".join(draw.choices(chinese, k=count))

    def write(name: str, text: str) -> None:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def rows(values: list[object]) -> str:
        return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)

    write("tinystories/sample.txt", "<|endoftext|>\n".join(words(40) + "." for _ in range(200)))
    poems = [
        {"rhythmic": signs(3), "author": signs(2), "paragraphs": [signs(7) + "。" for _ in range(4)]}
        for _ in range(200)
    ]
    write("chinese_poetry/songci_all.jsonl", rows(poems))
    for language, text in (("en", words), ("zh", signs)):
        mixed: list[object] = [
            {"instruction": text(4), "input": text(2) * (n % 2), "output": text(6)} for n in range(24)
        ]
        mixed += [
            {"conversations": [{"from": "human", "value": text(4)}, {"from": "gpt", "value": text(5)}]}
            for _ in range(24)
        ]
        write(f"sft/alpaca_{language}_demo.json", json.dumps(mixed, ensure_ascii=False, indent=1))
    for split in ("train", "val"):
        for language in ("de", "en"):
            write(f"multi30k/{split}.{language}", "".join(words(6) + "\n" for _ in range(40)))
    for split in ("train", "dev"):
        write(
            f"scitldr/{split}.jsonl", rows([{"source": [words(9), words(5)], "target": [words(4)]} for _ in range(30)])
        )
    for split in ("dev", "test"):
        write(f"csl_title/{split}.tsv", "".join(f"to title\t{signs(30)}\t{signs(5)}\n" for _ in range(30)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_data(folder)
    return folder


def trained(folder: Path, name: str, *changes: str) -> Path:
    done = run("train", CONFIGS / f"{name}.yaml", *SMALL, *changes, cwd=folder)
    assert done.returncode == 0, done.stderr
    directory = folder / "runs/finetune" / name
    assert all(loss < 20 for _, loss, _ in metrics(directory))
    assert evaluations(directory)
    return directory


def replayed(folder: Path, first: str) -> None:
    """Training goes on with a quarter of its samples from what the model was pretrained on."""
    config = yaml.safe_load((CONFIGS / f"{first}.yaml").read_text(encoding="utf-8"))
    old, new = config["data"]["sources"][0], {"kind": "jsonl", "paths": ["data/new.jsonl"]}
    (folder / "data/new.jsonl").write_text("".join(json.dumps({"text": "ab ba " * 20}) + "\n" for _ in range(300)))
    sources = [{**new, "weight": 0.75, "label": "new"}, {**old, "weight": 0.25, "label": "old"}]
    tokenizer = f"{{kind: sentencepiece, path: runs/finetune/{first}/tokenizer/tokenizer.model}}"
    changes = (f"run.directory=replay_{first}", f"train.init_from=runs/finetune/{first}", f"data.tokenizer={tokenizer}")
    done = run(
        "train", CONFIGS / f"{first}.yaml", *SMALL, *STREAM, *changes, f"data.sources={json.dumps(sources)}", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    shown = run("data", "ledger", f"replay_{first}", "--step", "4", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    samples = re.split(r"step 4, sample \d+\n", shown.stdout)[1:]
    assert sum("data/new.jsonl" in sample for sample in samples) == 3
    assert len(samples) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("stories_en", {"dialogue_en": "dialogue", "summary_en": "pairs"}),
        ("poetry_zh", {"dialogue_zh": "dialogue", "title_zh": "pairs"}),
    ],
)
def test_a_language_and_what_starts_from_its_model(first: str, then: dict[str, str], folder: Path) -> None:
    trained(folder, first, *SCRATCH, *STREAM)
    replayed(folder, first)
    for name, kind in then.items():
        done = run("data", "show", CONFIGS / f"{name}.yaml", *CUTS[kind], "--samples", "2", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "[[" in done.stdout
        directory = trained(folder, name, *CUTS[kind])
        assert load_model(directory).model.config.layers == 2


@pytest.mark.slow
def test_a_translation(folder: Path) -> None:
    changes = ("data.sequence_length=24", "objective.target_length=24", "schedule.warmup_steps=1", "train.epochs=1")
    directory = trained(folder, "translation_de_en", *SCRATCH, *changes)
    done = run("generate", directory, "--prompt", "ab cd", "--max-new-tokens", "4", "--temperature", "0", cwd=folder)
    assert done.returncode == 0, done.stderr
