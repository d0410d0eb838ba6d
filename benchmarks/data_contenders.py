"""The contenders of the data benchmark that run step by step: this project, its limits and its peers.

A step returns the tokens (or documents, where only reading is timed) that it went through; that of "opening" seconds.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from benchmarks.data_setup import MEGABYTE, OBJECTIVES, Setup, library_bpe, texts_of, transformers_tokenizer
from data_pipeline.config import DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives import build_objective
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.byte_pairs import fast_encoder
from data_pipeline.tokenizer.hugging_face import CACHED_WORDS

Step = Callable[[], float]
EncodeBatch = Callable[[list[str]], list[Any]]
"""Texts to token ids, as a list or an array for each."""
BLOCK_BYTES = 1 << 16
"""Text that goes into one call of a tokenizer: larger batches are slower, since their results leave the cache."""
FASTEST = "gpt2 by tiktoken"
"""GPT-2's tokenizer by the library that takes the least time for it."""
SEED = 1


def build(setup: Setup, name: str) -> Step:
    """The step of a contender of `CONTENDERS`."""
    return CONTENDERS[name](setup)


def pin() -> None:
    """Keep this process, with whatever threads its libraries start, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def loader_step(setup: Setup, tokenizer: str, objective: str) -> Step:
    """JSON lines to batches through the loader; counts the tokens of text, not those that an objective adds."""
    # The default lanes hold four or five samples each for shuffling.
    data = setup.data([setup.text], tokenizer, lanes=setup.lanes, shuffle_buffer=4 * setup.lanes)
    folder = setup.tokenizer_dir(tokenizer)
    loader = TrainLoader(data, load_tokenizer(folder), objective=OBJECTIVES[objective], seed=SEED, dp_rank=0, dp_size=1)
    made = build_objective(OBJECTIVES[objective], load_tokenizer(folder), setup.sequence, SEED)
    samples, batch = setup.lanes * setup.step_rounds, min(setup.batch, setup.lanes * setup.step_rounds)

    def step() -> float:
        for first in range(0, samples, batch):
            loader.take(min(batch, samples - first))
        return samples * (made.length - made.overlap)

    return step


def library_encode(setup: Setup, tokenizer: str) -> EncodeBatch:
    """The library's own batch call, as fast as it can be told to be on one thread."""
    if tokenizer == "t5":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=setup.tokenizers["t5"]["path"])
        return partial(processor.encode_as_numpy, num_threads=1)
    bpe = library_bpe(setup)
    if tokenizer == FASTEST:
        encode_text = fast_encoder(bpe)
        assert encode_text is not None
        return lambda texts: list(map(encode_text, texts))
    if hasattr(bpe.model, "_resize_cache"):
        bpe.model._resize_cache(CACHED_WORDS)
    return lambda texts: [encoding.ids for encoding in bpe.encode_batch_fast(texts, add_special_tokens=False)]


def bare_encode_step(setup: Setup, tokenizer: str) -> Step:
    """The limit: texts that lie in memory, encoded and forgotten."""
    encode = library_encode(setup, tokenizer)
    blocks = itertools.cycle(_blocks(texts_of(setup.text)))
    wanted = setup.lanes * setup.step_rounds * setup.sequence

    def step() -> float:
        done = 0
        while done < wanted:
            done += sum(map(len, encode(next(blocks))))
        return done

    return step


def recipe_step(setup: Setup, tokenizer: str) -> Step:
    """`run_clm.py` of transformers' examples: a JSON data set, tokenised and grouped by `map`, read in batches."""
    import datasets
    from transformers import default_data_collator

    datasets.disable_progress_bars()
    datasets.disable_caching()
    encode, length = transformers_tokenizer(setup, tokenizer), setup.sequence

    def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain(*rows)) for name, rows in examples.items()}
        total = len(next(iter(joined.values()))) // length * length
        result = {name: [row[i : i + length] for i in range(0, total, length)] for name, row in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    def step() -> float:
        cache = tempfile.mkdtemp(dir=setup.scratch)
        raw = datasets.load_dataset("json", data_files=setup.recipe, split="train", cache_dir=cache)
        tokens = raw.map(
            lambda examples: encode(examples["text"]), batched=True, remove_columns=["text"], load_from_cache_file=False
        )
        grouped = tokens.map(group_texts, batched=True, load_from_cache_file=False)
        loader = torch.utils.data.DataLoader(
            grouped, shuffle=True, collate_fn=default_data_collator, batch_size=setup.batch
        )
        done = sum(batch["input_ids"].numel() for batch in loader)
        del raw, tokens, grouped, loader
        shutil.rmtree(cache)
        return done

    return step


def streaming_loop_step(setup: Setup, tokenizer: str) -> Step:
    """The plain loop that many write: `datasets` streaming, the library's batch call, and packing."""
    import datasets

    encode = library_encode(setup, tokenizer)
    eos = load_tokenizer(setup.tokenizer_dir(tokenizer)).special["eos"]
    length = setup.sequence + 1

    def packed() -> Iterator[torch.Tensor]:
        held: list[int] = []
        rows: list[list[int]] = []
        while True:
            stream = datasets.load_dataset("json", data_files=setup.text, split="train", streaming=True)
            for batch in stream.iter(batch_size=32):
                for ids in encode(batch["text"]):
                    held.extend(ids)
                    held.append(eos)
                while len(held) >= length:
                    rows.append(held[:length])
                    del held[: length - 1]
                    if len(rows) == setup.batch:
                        yield torch.from_numpy(np.array(rows, dtype=np.int64))
                        rows = []

    batches = packed()
    wanted = setup.lanes * setup.step_rounds * setup.sequence

    def step() -> float:
        done = 0
        while done < wanted:
            batch = next(batches)
            done += batch.shape[0] * setup.sequence
        return done

    return step


def indexed_step(setup: Setup) -> Step:
    """Shuffled windows of a .bin file through the loader, as `llmscale train` reads prepared data."""
    data = DataConfig.model_validate(
        {
            "sources": [{"kind": "tokens", "paths": [setup.indexed]}],
            "tokenizer": setup.tokenizers["gpt2"],
            "sequence_length": setup.sequence,
        }
    )
    loader = TrainLoader(data, load_tokenizer(setup.tokenizer_dir("gpt2")), seed=SEED, dp_rank=0, dp_size=1)

    def step() -> float:
        return sum(loader.take(setup.batch)[0].targets.numel() for _ in range(setup.indexed_batches))

    return step


def gather_step(setup: Setup, tuned: bool) -> Step:
    """The limit: the same windows by numpy alone, as slices of a memory map; a matrix of indices takes longer.

    `tuned`: copied and converted in one call, from an array that is no numpy.memmap, of which slices are slow.
    """
    mapped = np.memmap(f"{setup.indexed}.bin", dtype=setup.indexed_dtype, mode="r")
    tokens = np.asarray(mapped)
    width = setup.sequence + 1
    starts = np.random.default_rng(SEED).permutation((len(tokens) - 1) // setup.sequence) * setup.sequence
    order = itertools.cycle(starts.tolist())

    def batch() -> torch.Tensor:
        places = itertools.islice(order, setup.batch)
        if not tuned:
            return torch.from_numpy(np.stack([mapped[place : place + width] for place in places]).astype(np.int64))
        rows: np.ndarray = np.empty((setup.batch, width), dtype=np.int64)
        np.concatenate([tokens[place : place + width] for place in places], out=rows.reshape(-1))
        return torch.from_numpy(rows)

    return lambda: float(sum(batch()[:, 1:].numel() for _ in range(setup.indexed_batches)))


def reading_step(setup: Setup) -> Step:
    """All documents of the large file, with their ids and places, as lanes get them."""
    corpus = Corpus.training(setup.data([setup.big], "gpt2"))
    return lambda: float(sum(1 for _ in corpus.documents()))


def bare_reading_step(setup: Setup) -> Step:
    """The limit: the texts of the lines, parsed and forgotten."""

    def step() -> float:
        with open(setup.big, "rb") as lines:
            return sum(1 for text in (orjson.loads(line)["text"] for line in lines) if text)

    return step


def opening_step(setup: Setup) -> Step:
    """From nothing but the config to the first documents at a random place of the large file.

    Returns the seconds of the fastest of three openings of one place, since the clock counts what neighbours do too.
    """
    data = setup.data([setup.big], "gpt2")
    size = Path(setup.big).stat().st_size
    draw = random.Random(SEED)

    def open_at(place: int) -> float:
        started = time.perf_counter()
        corpus = Corpus.training(data)
        span = next(span for span in corpus.spans if span.start <= place < span.stop)
        documents, _ = corpus.read(span, place)
        seconds = time.perf_counter() - started
        # A place in the last line of a span has nothing after it there.
        assert documents or place > span.stop - MEGABYTE
        corpus.close()
        return seconds

    def step() -> float:
        place = draw.randrange(size)
        return min(open_at(place) for _ in range(3))

    return step


def _blocks(texts: list[str]) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size >= BLOCK_BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(text)
        size += len(text)
    return blocks


_BY_TOKENIZER: dict[str, Callable[..., Step]] = {
    "bare": bare_encode_step,
    "recipe": recipe_step,
    "loop": streaming_loop_step,
    **{objective: partial(loader_step, objective=objective) for objective in OBJECTIVES},
}
CONTENDERS: dict[str, Callable[[Setup], Step]] = {
    **{
        f"{tokenizer}/{name}": partial(made, tokenizer=tokenizer)
        for tokenizer in ("gpt2", "t5")
        for name, made in _BY_TOKENIZER.items()
    },
    f"{FASTEST}/bare": partial(bare_encode_step, tokenizer=FASTEST),
    "indexed": indexed_step,
    "gather": partial(gather_step, tuned=False),
    "tuned gather": partial(gather_step, tuned=True),
    "reading": reading_step,
    "bare reading": bare_reading_step,
    "opening": opening_step,
}
