"""What the data benchmark reads: text and tokenizers, and the sizes that follow from `--size`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from data_pipeline.config import DataConfig
from data_pipeline.finite.format import token_dtype
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.denoising import DenoisingObjective
from data_pipeline.objectives.masked import MaskedObjective
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer

MEGABYTE = 10**6
OBJECTIVES: dict[str, ObjectiveConfig] = {
    "causal": CausalObjective(),
    "masked": MaskedObjective(),
    "denoising": DenoisingObjective(),
}
VOCABULARY = 16_384
"""Of the tokenizers that are trained where none are given."""
TRAINING_BYTES = 4 * MEGABYTE
DOCUMENT_BYTES = (1_000, 8_000)
"""Of documents that are cut from the standard library, at line ends."""
PIECE_CHARACTERS = 500
"""Of the short documents of `wrapping`."""


def log(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


@dataclass
class Setup:
    """Files and sizes, kept as `setup.json` in the scratch folder for the processes that measure."""

    scratch: str
    sequence: int = 2048
    """Target tokens of a sample."""
    batch: int = 64
    lanes: int = 24
    """Of the throughput figures: few, so that every recorded step holds the same share of reading and tokenising."""
    all_lanes: int = DataConfig.model_fields["lanes"].default
    """Of all other figures: the default."""
    step_rounds: int = 32
    """Samples of each lane in a recorded step: many times what a block of text makes, which is tokenised at once."""
    text: str = ""
    """JSON lines of `--size` MB."""
    recipe: str = ""
    """JSON lines of a quarter of it, all of which transformers' recipe goes through in a step."""
    big: str = ""
    """JSON lines of 12.5 times `--size`."""
    copies: list[str] = field(default_factory=list)
    """Ten names of `big`, which the pipeline takes for ten files."""
    wrapping: str = ""
    """JSON lines short enough that a million short samples go through them many times."""
    resumes: list[int] = field(default_factory=lambda: [1_000, 1_000_000])
    """Samples after which a resume is timed."""
    short_sequence: int = 64
    """Target tokens of those samples, of one byte each."""
    first_batch: int = 256
    """Samples of the first batch that is timed: at sequence 2,048 half a million tokens."""
    memory_rounds: int = 2
    """Samples of every lane until the loader's memory is first taken; it is taken again after ten times as many."""
    indexed_tokens: int = 64 * MEGABYTE
    """Tokens of the .bin file."""
    indexed_dtype: str = "uint16"
    """Their type."""
    indexed_batches: int = 400
    """Batches of a recorded step."""
    tokenizers: dict[str, dict[str, str]] = field(default_factory=dict)
    """`data.tokenizer` of "gpt2" and "t5"."""

    @property
    def file(self) -> Path:
        return Path(self.scratch) / "setup.json"

    def save(self) -> None:
        """Write `setup.json`."""
        self.file.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, scratch: str | Path) -> Setup:
        """What `save` wrote."""
        return cls(**json.loads((Path(scratch) / "setup.json").read_text()))

    def tokenizer_dir(self, name: str) -> Path:
        """The folder of a tokenizer as a run keeps it, with the roles of all objectives."""
        return Path(self.scratch) / f"tokenizer-{name}"

    @property
    def indexed(self) -> str:
        """Prefix of the .bin and .idx files."""
        return f"{self.scratch}/indexed"

    def data(self, paths: list[str], tokenizer: str, **settings: Any) -> DataConfig:
        """The data section for JSON lines; everything that is not given is at its default."""
        return DataConfig.model_validate(
            {
                "sources": [{"kind": "jsonl", "paths": paths}],
                "tokenizer": self.tokenizers[tokenizer],
                "sequence_length": self.sequence,
                "lanes": self.all_lanes,
                "workers": 0,
                **settings,
            }
        )


def prepare_setup(scratch: Path, size: float, texts: list[str], gpt2: str | None, t5: str | None, cache: Path) -> Setup:
    """Make the files and tokenizers.

    Args:
        scratch: an empty folder.
        size: megabytes of text; the other files and the work of a step are in proportion.
        texts: JSON-lines files with a field `text`; none: the standard library's own sources.
        gpt2: a folder with a byte-level BPE (tokenizer.json, or vocabulary and merges); None: trained.
        t5: a SentencePiece model; None: trained.
        cache: where trained tokenizers are kept.
    """
    share = min(1.0, size / 32)
    setup = Setup(
        str(scratch),
        lanes=max(4, round(24 * share)),
        resumes=[1_000, max(4_000, round(1_000_000 * share))],
        indexed_tokens=max(2 * MEGABYTE, round(64 * MEGABYTE * share)),
        indexed_batches=max(4, round(400 * share)),
    )
    log(f"writing {13.75 * size:.0f} MB of text")
    documents = list(_given(texts) if texts else _standard_library())
    setup.text = _write(scratch / "text.jsonl", documents, size)
    setup.recipe = _write(scratch / "recipe.jsonl", documents, size / 4)
    setup.big = _write(scratch / "big.jsonl", documents, max(12.5 * size, 64))
    setup.wrapping = _write(scratch / "wrapping.jsonl", list(_pieces(documents)), 8)
    for number in range(10):
        name = scratch / f"copy-{number}.jsonl"
        os.link(setup.big, name)
        setup.copies.append(str(name))
    setup.tokenizers = {
        "gpt2": _given_bpe(Path(gpt2)) if gpt2 else _trained_bpe(cache, documents),
        "t5": {"kind": "sentencepiece", "path": t5 or _trained_unigram(cache, documents)},
        "bytes": {"kind": "bytes"},
    }
    roles = {role for made in OBJECTIVES.values() for role in made.roles(setup.sequence)}
    for tokenizer in setup.tokenizers:
        config = setup.data([setup.text], tokenizer)
        prepare_tokenizer(config, setup.tokenizer_dir(tokenizer), roles=sorted(roles))
    setup.save()
    return setup


def _given(paths: list[str]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as lines:
            yield from (orjson.dumps({"text": orjson.loads(line)["text"]}) + b"\n" for line in lines if line.strip())


def _standard_library() -> Iterator[bytes]:
    """The sources of the standard library cut into documents."""
    least, most = DOCUMENT_BYTES
    sizes = itertools.cycle(range(least, most, 977))
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "dist-packages", "__pycache__"} & set(path.parts):
            continue
        document, wanted = "", next(sizes)
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True):
            document += line[:most]
            if len(document) >= wanted:
                yield orjson.dumps({"text": document}) + b"\n"
                document, wanted = "", next(sizes)
        if document.strip():
            yield orjson.dumps({"text": document}) + b"\n"


def _pieces(documents: list[bytes]) -> Iterator[bytes]:
    """The documents cut short, so that every lane has some even where there is little text."""
    for document in documents[:4096]:
        text = orjson.loads(document)["text"]
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield orjson.dumps({"text": text[start : start + PIECE_CHARACTERS]}) + b"\n"


def _write(path: Path, documents: list[bytes], megabytes: float) -> str:
    """Documents over and over again, up to a size."""
    left = round(megabytes * MEGABYTE)
    with open(path, "wb", buffering=1 << 20) as file:
        for document in itertools.cycle(documents):
            file.write(document)
            left -= len(document)
            if left <= 0:
                return str(path)
    raise ValueError("there are no documents in --text")


def texts_of(path: str) -> list[str]:
    """The texts of JSON lines."""
    with open(path, "rb") as lines:
        return [orjson.loads(line)["text"] for line in lines]


def _training_texts(documents: list[bytes]) -> Iterator[str]:
    """Evenly spread, up to TRAINING_BYTES."""
    step = max(1, sum(map(len, documents)) // TRAINING_BYTES)
    return (orjson.loads(document)["text"] for document in documents[::step])


def _digest(documents: list[bytes]) -> str:
    """Of what a tokenizer is trained on, and how large."""
    state = xxhash.xxh64(str(VOCABULARY).encode())
    for document in documents:
        state.update(document)
    return state.hexdigest()


def _given_bpe(folder: Path) -> dict[str, str]:
    if (folder / "tokenizer.json").is_file():
        return {"kind": "huggingface", "path": str(folder / "tokenizer.json")}
    names = [(folder / a, folder / b) for a in ("vocab.json", "encoder.json") for b in ("merges.txt", "vocab.bpe")]
    for vocabulary, merges in names:
        if vocabulary.is_file() and merges.is_file():
            return {"kind": "gpt2", "path": str(vocabulary), "merges": str(merges)}
    raise SystemExit(f"--gpt2: {folder} holds neither tokenizer.json nor vocab.json and merges.txt; name another")


def _trained_bpe(cache: Path, documents: list[bytes]) -> dict[str, str]:
    path = cache / f"bpe-{_digest(documents)}.json"
    if not path.exists():
        import tokenizers

        log("training a byte-level BPE tokenizer")
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(_training_texts(documents), trainer)
        made.save(_temporary(path))
        os.replace(_temporary(path), path)
    return {"kind": "huggingface", "path": str(path)}


def _trained_unigram(cache: Path, documents: list[bytes]) -> str:
    path = cache / f"unigram-{_digest(documents)}.model"
    if not path.exists():
        import sentencepiece

        log("training a SentencePiece unigram tokenizer")
        with open(_temporary(path), "wb") as model:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for text in _training_texts(documents) for line in text.splitlines()),
                model_writer=model,
                model_type="unigram",
                vocab_size=VOCABULARY,
                byte_fallback=True,
                hard_vocab_limit=False,
                seed_sentencepiece_size=100_000,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                minloglevel=2,
            )
        os.replace(_temporary(path), path)
    return str(path)


def _temporary(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{path}.{os.getpid()}"


def write_indexed(setup: Setup) -> None:
    """The .bin file: the recipe's text in GPT-2's tokens, document after document, over and over again."""
    log(f"writing a .bin file of {setup.indexed_tokens:,} tokens")
    tokenizer = load_tokenizer(setup.tokenizer_dir("gpt2"))
    eos = np.array([tokenizer.special["eos"]], dtype=np.int32)
    documents = [np.concatenate([ids, eos]) for ids in tokenizer.encode_batch(texts_of(setup.recipe))]
    setup.indexed_dtype = token_dtype(tokenizer.vocab_size).name
    with IndexedWriter(setup.indexed, token_dtype(tokenizer.vocab_size)) as writer:
        while writer.token_count < setup.indexed_tokens:
            writer.add(documents)
    setup.save()


def transformers_tokenizer(setup: Setup, name: str) -> Any:
    """The same vocabulary as transformers' users have it."""
    import transformers

    if name == "t5":
        folder = Path(setup.scratch) / f"t5-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        shutil.copy(setup.tokenizers["t5"]["path"], folder / "spiece.model")
        return transformers.T5Tokenizer.from_pretrained(folder)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library_bpe(setup), eos_token="<|endoftext|>")


def library_bpe(setup: Setup) -> Any:
    """The byte-level BPE as the `tokenizers` library has it."""
    import tokenizers

    given = setup.tokenizers["gpt2"]
    if given["kind"] == "huggingface":
        return tokenizers.Tokenizer.from_file(given["path"])
    made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(given["path"], given["merges"]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made
