"""Ids that the vocabulary does not have, in .bin files of every integer type: refused by file, place and value."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.finite.heldout import build_evaluation_set, heldout_documents
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.open_samples import open_samples
from data_pipeline.tokenizer import BytesTokenizer, Tokenizer, load_tokenizer, prepare_tokenizer
from tests.data_pipeline.corpora import config

# As the format has them, code by code.
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
BAD = [
    (2, -1), (2, -128), (3, -1), (3, 300), (3, -32768), (4, -5), (4, 2**31 - 1), (5, -1), (5, 2**32 + 5),
    (5, -(2**63)), (5, 2**62), (8, 65535), (8, 400),
]  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal": {"name": "causal"},
    "separate documents": {"name": "causal", "separate_documents": True},
    "fill in the middle": {"name": "causal", "fim_rate": 0.5},
    "prefix": {"name": "prefix"},
    "masked": {"name": "masked", "whole_words": False},
    "whole words": {"name": "masked", "whole_words": True},
    "sentences": {"name": "masked", "next_sentence": True},
    "denoising": {"name": "denoising"},
    "pairs": {"name": "seq2seq", "target_length": 16},
    "joined pairs": {"name": "seq2seq", "target_length": 16, "concatenate": True},
}


def write(prefix: Path, code: int, documents: list[list[int]]) -> None:
    """By the layout alone, without the writer that checks."""
    lengths = np.array([len(document) for document in documents], dtype="<i4")
    tokens = np.array([token for document in documents for token in document], dtype=TYPES[code])
    size = tokens.itemsize
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(documents), len(documents) + 1)
    pointers = (np.cumsum(lengths, dtype="<i8") - lengths) * size
    bounds = np.arange(len(documents) + 1, dtype="<i8")
    Path(f"{prefix}.idx").write_bytes(header + lengths.tobytes() + pointers.tobytes() + bounds.tobytes())
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())


def documents_with(value: int | None, place: int, size: int = 40, count: int = 12) -> list[list[int]]:
    found = [[3 + (i * size + k) % 100 for k in range(size)] for i in range(count)]
    if value is not None:
        found[place // size][place % size] = value
    return found


def tokenizer_for(objective: Any, folder: Path) -> Tokenizer:
    settings = config({"kind": "tokens", "paths": ["-"]}, tokenizer={"kind": "bytes"})
    return prepare_tokenizer(settings, folder, roles=objective.roles(settings.sequence_length))


def read_all(prefix: Path, objective: Any, tokenizer: Tokenizer) -> None:
    data = config({"kind": "tokens", "paths": [str(prefix)]})
    samples = open_samples(data, tokenizer, objective, seed=0, cache=None)
    numbers = list(range(samples.per_epoch))  # type: ignore[union-attr]
    for first in range(0, len(numbers), 4):
        samples.make(numbers[first : first + 4])


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    adapter: TypeAdapter[Any] = TypeAdapter(ObjectiveConfig)
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        name: tokenizer_for(adapter.validate_python(objective), folder / name) for name, objective in OBJECTIVES.items()
    }


@pytest.mark.parametrize(("code", "value"), BAD)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_names_file_place_and_value(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], name: str, code: int, value: int
) -> None:
    objective = TypeAdapter(ObjectiveConfig).validate_python(OBJECTIVES[name])
    tokenizer = tokenizers[name]
    write(tmp_path / "good", code, documents_with(None, 0))
    read_all(tmp_path / "good", objective, tokenizer)
    if 0 <= value < tokenizer.vocab_size:
        pytest.skip("an id of this vocabulary")
    write(tmp_path / "bad", code, documents_with(value, 287))
    message = rf"bad\.bin holds id {value} at token 287 of the file, in document 7, but the tokenizer has ids 0 to "
    with pytest.raises(UserError, match=message + str(tokenizer.vocab_size - 1)):
        read_all(tmp_path / "bad", objective, tokenizer)


@pytest.mark.parametrize(("code", "value"), BAD)
def test_evaluation_does_too(tmp_path: Path, code: int, value: int) -> None:
    BytesTokenizer().save(tmp_path)
    write(tmp_path / "bad", code, documents_with(value, 43))
    source = SourceConfig(kind="tokens", paths=[str(tmp_path / "bad")])
    data = config({"kind": "text", "paths": ["-"]}).model_copy(update={"evaluation": [source]})
    message = re.escape(f"{tmp_path / 'bad'}.bin holds id {value} at token 43 of the file, in document 1, but")
    with pytest.raises(UserError, match=message):
        build_evaluation_set(data, load_tokenizer(tmp_path), tmp_path / "cache")
    with pytest.raises(UserError, match=message):
        list(heldout_documents(data, load_tokenizer(tmp_path)))
