"""The shipped fine-tuning configs of encoders in miniature: each is run on small data of the form that it names."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.finetune.test_configs import CONFIGS, SMALL
from tests.train.forked import run
from tests.train.runs import evaluations

MINIATURE = (
    *SMALL, "data.tokenizer={kind: bytes}", "train.init_from=null", "model.max_positions=96",
    "data.sequence_length=64", "schedule.warmup_steps=1", "train.epochs=2",
)  # fmt: skip
NAMES = ["squad_en", "cmrc2018_zh", "ner_en", "sst2_en", "chnsenticorp_zh"]
MEASURES = {"squad_en": "exact", "cmrc2018_zh": "exact"}


def write_data(folder: Path) -> None:
    draw = random.Random(1)

    def write(name: str, text: str) -> None:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for corpus, splits, signs, gap in (
        ("squad", ("train-v1.1", "dev-v1.1"), ["Ann", "Bob", "sees", "the", "👍🏽", "of", "Rome"], " "),
        ("cmrc2018", ("cmrc2018_train", "cmrc2018_dev"), list("今天天气很好我们去公园"), ""),
    ):
        for split in splits:
            paragraphs = []
            for number in range(12):
                passage = gap.join(draw.choices(signs, k=14))
                answer = draw.choice(signs)
                found = [{"text": answer, "answer_start": passage.index(answer)}] if answer in passage else []
                asked = {"id": str(number), "question": signs[0] + "?", "answers": found}
                paragraphs.append({"context": passage, "qas": [asked] if found else []})
            write(f"{corpus}/{split}.json", json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False))
    for split in ("train", "valid"):
        lines = ["-DOCSTART- -X- -X- O", ""]
        for _ in range(20):
            lines += ["Ann NNP B-NP B-PER", "Lee NNP I-NP I-PER", "left VBD B-VP O", "Rome NNP B-NP B-LOC", ""]
        write(f"conll2003/{split}.txt", "\n".join(lines))
        rows = "".join(f"{draw.choice(('good', 'bad'))} film\t{draw.randint(0, 1)}\n" for _ in range(24))
        write(f"sst2/{split.replace('valid', 'dev')}.tsv", rows)
        write(f"chnsenticorp/{split.replace('valid', 'dev')}.txt", rows.replace("film", "电影"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_is_measured(name: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    done = run("train", CONFIGS / f"{name}.yaml", *MINIATURE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *_, last = evaluations(tmp_path / "runs/finetune" / name)
    assert MEASURES.get(name, "accuracy") in last
    assert last["loss"] < 20
    if name == "ner_en":  # the words tell their tags
        assert last["loss"] < first["loss"]
