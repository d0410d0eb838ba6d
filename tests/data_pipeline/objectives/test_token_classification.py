"""Words and their tags to samples: labels beside brute force over bytes, windows, every way to read, and mistakes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.base.tags import breaks, entities, spelled
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.token_classification import NAME, TokenClassificationObjective
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
OBJECTIVE = TokenClassificationObjective(labels=LABELS)
SENTENCES = [
    (["Zoe\u0308", "Li", "saw", "👍🏽", "U.K.", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]),
    (["北", "京", "好"], ["B-LOC", "I-LOC", "O"]),
    (["x"], ["O"]),
]


def config_of(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "jsonl", "paths": [str(path)], "field": "tokens", "join": " ",
              "fields": {"tokens": "tokens", "tags": "tags"}, **changes.pop("source", {})}  # fmt: skip
    settings = {"tokenizer": {"kind": "bytes"}, "sequence_length": 48, "lanes": 1, "shuffle_buffer": 1, **changes}
    return DataConfig.model_validate({"sources": [source], **settings})


def rows_of(sentences: list[tuple[list[str], list[Any]]]) -> list[dict[str, Any]]:
    return [{"tokens": tokens, "tags": tags} for tokens, tags in sentences]


def tokenizer_of(config: DataConfig, folder: Path, objective: TokenClassificationObjective) -> Tokenizer:
    return prepare_tokenizer(config, folder / "tokenizer", roles=objective.roles(config.sequence_length))


def expected(tokens: list[str], tags: list[str], join: str, objective: TokenClassificationObjective) -> list[int]:
    """Labels of a text's bytes, of which each is a token: written out."""
    labels: list[int] = []
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        size = len(token.encode())
        own = LABELS.index(tag)
        labels += [-1] * (len(join) if number else 0)
        labels += [own] * size if objective.pieces == "all" else [own] + [-1] * (size - 1)
    return labels


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize("pieces", ["first", "all"])
def test_labels_are_those_of_the_words(order: str, pieces: Any, tmp_path: Path) -> None:
    objective = OBJECTIVE.model_copy(update={"pieces": pieces})
    config = config_of(tmp_path, rows_of(SENTENCES), order=order)
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, objective)
    with TrainLoader(
        config, tokenizer, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=tmp_path / "cache"
    ) as loader:
        batch, _ = loader.take(6)
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective)
    special, seen = set(tokenizer.special.values()), set()
    for each in (batch, held.batch([0, 1, 2])):
        for number in range(each.size):
            inputs, labels = each.inputs[number].tolist(), each.labels[NAME][number].tolist()
            text = tokenizer.decode(np.array([token for token in inputs if token not in special]))
            tokens, tags = next(pair for pair in SENTENCES if " ".join(pair[0]) == text)
            wanted = expected(tokens, tags, " ", objective)
            assert inputs[0] == tokenizer.special["cls"]
            assert labels[0] == -1
            assert labels[1 : 1 + len(wanted)] == wanted
            assert set(labels[1 + len(wanted) :]) <= {-1}
            assert each.weights[number].tolist() == [float(label >= 0) for label in labels]
            seen.add(text)
    assert len(seen) == 3
    assert held.documents == 3
    fill = held.batch([0, -1])
    assert fill.weights[1].sum() == 0
    assert (fill.labels[NAME][1] == -1).all()


@pytest.mark.parametrize("order", ["stream", "finite"])
def test_long_texts_are_read_in_parts_between_words(order: str, tmp_path: Path) -> None:
    """Each word once; a run that stops within a text goes on behind the part that it has seen."""
    sentences = [(["ab", "cdefgh", "i", "jk", "lmnopqrstuvwxyz" * 2], ["B-PER", "O", "O", "B-LOC", "I-LOC"])] * 2
    config = config_of(tmp_path, rows_of(sentences), order=order, sequence_length=14)
    tokenizer = tokenizer_of(config, tmp_path, OBJECTIVE)

    def loader(**more: Any) -> TrainLoader:
        return TrainLoader(
            config, tokenizer, objective=OBJECTIVE, seed=1, dp_rank=0, dp_size=1, cache=tmp_path / "cache", **more
        )

    with loader() as whole:
        batch, _ = whole.take(10)
    for stop in range(1, 9):
        with loader() as first:
            first.take(stop)
            cursor = merge_cursors([first.cursor()])
        with loader(first_sample=stop, cursor=cursor) as second:
            rest, _ = second.take(10 - stop)
        assert rest.inputs.tolist() == batch.inputs[stop:].tolist(), stop
        assert rest.labels[NAME].tolist() == batch.labels[NAME][stop:].tolist()
    if order == "stream":
        special = set(tokenizer.special.values())
        parts = [tokenizer.decode(np.array([t for t in row if t not in special])) for row in batch.inputs.tolist()]
        assert parts[:2] == ["ab cdefgh i ", "jk "]
        assert "".join(parts[:5]) == " ".join(sentences[0][0])
        labels = [label for row in batch.labels[NAME][:5].tolist() for label in row if label >= 0]
        assert labels == [LABELS.index(tag) for tag in sentences[0][1]]


def test_what_is_told_is_counted(tmp_path: Path) -> None:
    sentences = [(["a", "b"], ["I-PER", "O"]), (["", "c"], ["O", "O"]), (["d" * 99], ["O"])]
    config = config_of(tmp_path, rows_of(sentences), evaluation=[])
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, OBJECTIVE)
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=OBJECTIVE)
    assert held.dropped == {
        "text whose tags break the scheme": 1, "too long text read in parts": 1, "words that become no token": 1,
    }  # fmt: skip
    assert held.documents == 3
    assert len(held) == 2 + 3
    cut = OBJECTIVE.model_copy(update={"overflow": "truncate"})
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=cut)
    assert held.dropped["too long text cut off"] == 1
    assert len(held) == 3
    never = OBJECTIVE.model_copy(update={"overflow": "refuse"})
    with pytest.raises(UserError, match=r"rows\.jsonl:3: the text has 99 tokens, but .* has room for 46; raise it"):
        build_evaluation_set(config, tokenizer, tmp_path / "other", objective=never)


CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP B-LOC
rejects VBZ I-VP O
# NN I-NP O


Peter NNP I-NP B-PER
Li NNP I-NP I-PER
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.conll", "a.conll.gz"])
def test_conll_files(newline: str, name: str, tmp_path: Path) -> None:
    data = CONLL.replace("\n", newline).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    source = {"kind": "conll", "paths": [str(tmp_path / name)], "join": None}
    config = config_of(tmp_path, [], source=source)
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, OBJECTIVE)
    batch = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=OBJECTIVE).batch([0, 1])
    special = set(tokenizer.special.values())
    texts = [tokenizer.decode(np.array([t for t in row if t not in special])) for row in batch.inputs.tolist()]
    assert texts == ["EU rejects #", "Peter Li"]
    labels = [[label for label in row if label >= 0] for row in batch.labels[NAME].tolist()]
    assert labels == [[3, 0, 0], [1, 2]]


def test_conll_u_and_chinese_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_bytes("# text = 北京好\n1\t北京\tB-LOC\n2\t好\tO\n".encode("gb18030"))
    source = {"kind": "conll", "paths": [str(tmp_path / "a.conllu")], "join": "", "field": "1", "encoding": "gb18030"}
    config = config_of(tmp_path, [], source={**source, "fields": {"tokens": "1", "tags": "tags"}})
    tokenizer = tokenizer_of(config, tmp_path, OBJECTIVE)
    config = config.model_copy(update={"evaluation": config.sources})
    batch = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=OBJECTIVE).batch([0])
    assert batch.inputs[0, 1:10].tolist() == tokenizer.encode("北京好")
    assert batch.labels[NAME][0, 1:10].tolist() == [3, -1, -1, -1, -1, -1, 0, -1, -1]


@pytest.mark.parametrize("units", ["words", "characters"])
@pytest.mark.parametrize("scheme", ["bio", "iobes", "none"])
def test_entities_as_spans_of_characters(units: Any, scheme: Any, tmp_path: Path) -> None:
    text = "Zoe\u0308 Li in 北京👍🏽!"
    kinds = ["PER", "LOC"]
    labels = [
        "O",
        *(kinds if scheme == "none" else [f"{p}-{k}" for k in kinds for p in ("BI" if scheme == "bio" else "BIES")]),
    ]
    objective = TokenClassificationObjective(labels=labels, scheme=scheme, given="spans", units=units)
    spans = [[0, text.index(" in"), "PER"], {"start": text.index("北"), "end": text.index("👍"), "label": "LOC"}]
    source = {"field": "text", "join": None, "fields": {"spans": "entities"}}
    config = config_of(tmp_path, [{"text": text, "entities": spans}], source=source)
    tokenizer = tokenizer_of(config, tmp_path, objective)
    config = config.model_copy(update={"evaluation": config.sources})
    batch = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective).batch([0])
    found = [labels[label] for label in batch.labels[NAME][0].tolist() if label >= 0]
    if scheme == "none":
        people = 2 if units == "words" else 5
        assert found == ["PER"] * people + ["O"] * (1 if units == "words" else 2) + ["LOC"] * 2 + ["O"] * 2
    else:
        assert not breaks(found, scheme)
        assert [kind for kind, _, _ in entities(found)] == kinds


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "a tag is 'B-ORG', but objective.labels has 'O', 'B-PER', 'I-PER',"),
        ({"tokens": ["a"], "tags": [5]}, "a tag is '5', but objective.labels has"),
        ({"tokens": ["a"], "tags": [True]}, "a tag is 'true', but objective.labels has"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "there are 2 tokens and 1 tags; give each token one tag"),
        ({"tokens": ["a"], "tags": "O"}, 'tags is "O", but must be a list; correct the record'),
        ({"tokens": ["a"]}, "tags is null, but must be a list; correct the record"),
    ],
)
def test_a_wrong_record_stops_with_its_place(order: str, row: dict[str, Any], words: str, tmp_path: Path) -> None:
    fine = {"tokens": ["a"], "tags": [1]}
    config = config_of(tmp_path, [fine, fine, row], order=order)
    tokenizer = tokenizer_of(config, tmp_path, OBJECTIVE)
    with pytest.raises(UserError) as caught:
        TrainLoader(
            config, tokenizer, objective=OBJECTIVE, seed=1, dp_rank=0, dp_size=1, cache=tmp_path / "cache"
        ).take(3)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("entity", "words"),
    [
        ([1, 3, "PER"], "begins or ends inside of one of the words; correct it, or set units=characters"),
        ([0, 99, "PER"], "an entity is at 0 to 99, but the text has 5 characters"),
        ([0, 2, "ORG"], "a tag is 'B-ORG'"),
        ([0, "PER"], "must be [start, end, TYPE]"),
    ],
)
def test_wrong_spans(entity: list[Any], words: str, tmp_path: Path) -> None:
    objective = OBJECTIVE.model_copy(update={"given": "spans"})
    source = {"field": "text", "join": None, "fields": {"spans": "entities"}}
    config = config_of(tmp_path, [{"text": "ab cd", "entities": [entity]}], source=source)
    tokenizer = tokenizer_of(config, tmp_path, objective)
    config = config.model_copy(update={"evaluation": config.sources})
    with pytest.raises(UserError) as caught:
        build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective)
    assert words in str(caught.value)
    assert "rows.jsonl:1" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ["O"]}, "there must be two to choose from"),
        ({"labels": ["O", "B-X", "O"]}, "labels has 'O' 2 times"),
        ({"labels": ["O", "PER"]}, "labels has 'PER', which is no tag of scheme bio; correct it, or set scheme=none"),
        ({"labels": ["O", "E-PER"]}, "no tag of scheme bio"),
    ],
)
def test_labels_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TokenClassificationObjective(**settings)


def test_a_source_without_tags(tmp_path: Path) -> None:
    config = config_of(tmp_path, rows_of(SENTENCES), source={"fields": {"tokens": "tokens"}})
    tokenizer = tokenizer_of(config, tmp_path, OBJECTIVE)
    with pytest.raises(UserError, match=r"data\.sources\.0 does not say which field holds the tags"):
        TrainLoader(config, tokenizer, objective=OBJECTIVE, seed=1, dp_rank=0, dp_size=1)


@pytest.mark.parametrize("seed", range(40))
def test_entities_are_those_of_seqeval(seed: int) -> None:
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    draw = np.random.default_rng(seed)
    tags = draw.choice(["O", *(f"{p}-{k}" for p in "BIES" for k in ("A", "B"))], 30).tolist()
    if seed % 2:
        tags = [tag.replace("E-", "I-").replace("S-", "B-") for tag in tags]
    assert entities(tags) == sequence_labeling.get_entities(tags)


@pytest.mark.parametrize("scheme", ["bio", "iobes"])
def test_spelled_tags_give_the_entities_back(scheme: Any) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        kinds: list[str | None] = draw.choice(np.array(["A", "B", None], dtype=object), 12).tolist()
        begins = [kind is not None and (n == 0 or kinds[n - 1] != kind or bool(draw.random() < 0.3))
                  for n, kind in enumerate(kinds)]  # fmt: skip
        tags = spelled(kinds, begins, scheme)
        assert not breaks(tags, scheme)
        starts = [n for n, begin in enumerate(begins) if begin]
        assert [first for _, first, _ in entities(tags)] == starts
