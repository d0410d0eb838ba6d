"""One stream of samples for every objective and kind of source, whoever reads it and wherever it is interrupted."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.denoising import DenoisingObjective
from data_pipeline.objectives.masked import MaskedObjective
from data_pipeline.objectives.prefix import PrefixObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from tests.data_pipeline.corpora import texts
from tests.data_pipeline.source_writers import WITHOUT_TARGETS, WRITERS, write

LANES = 48
BATCH = 48
LAYOUTS = list(itertools.product([1, 2, 3, 6, 8], [0, 1, 3, 5]))
SOME_LAYOUTS = 8
"""Of them, in the thorough tests, each of which draws others. The quick ones share all out among them."""
EPOCHS = 2
OBJECTIVES: dict[str, ObjectiveConfig] = {
    "causal": CausalObjective(),
    "causal-fim-apart": CausalObjective(fim_rate=0.5, separate_documents=True),
    "prefix": PrefixObjective(),
    "masked": MaskedObjective(),
    "masked-words-sentences": MaskedObjective(whole_words=True, next_sentence=True),
    "denoising": DenoisingObjective(),
    "pairs": Seq2SeqObjective(target_length=16),
}
KINDS = [*WRITERS, "finite"]

# More workers than this machine has cores are the point here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Reader:
    """Reads global batches of a corpus at any layout."""

    def __init__(self, folder: Path, kind: str, objective: ObjectiveConfig) -> None:
        pairs = isinstance(objective, Seq2SeqObjective)
        source = write("jsonl" if kind == "finite" else kind, folder / "data", texts(240, longest=50), pairs)
        order = "finite" if kind == "finite" else "stream"
        settings = {"sequence_length": 32, "lanes": LANES, "span_bytes": 600, "shuffle_buffer": 300, "order": order}
        settings["tokenizer"] = {"kind": "bytes"}
        self.data = DataConfig.model_validate({"sources": [source], **settings})
        self.objective = objective
        self.tokenizer = folder / "tokenizer"
        self.cache = folder / "cache"
        prepare_tokenizer(self.data, self.tokenizer, roles=objective.roles(32))

    def read(
        self, steps: int, dp: int, workers: int, first: int, cursor: dict[str, Any] | None
    ) -> tuple[list[str], dict[str, Any]]:
        """A digest of every global batch with its ledger sum, and the cursor at the end."""
        data = self.data.model_copy(update={"workers": workers})
        loaders = [
            TrainLoader(
                data,
                load_tokenizer(self.tokenizer),
                objective=self.objective,
                seed=1,
                dp_rank=rank,
                dp_size=dp,
                first_sample=first,
                cursor=cursor,
                cache=self.cache,
            )
            for rank in range(dp)
        ]
        try:
            digests = [_digest([loader.take(BATCH // dp) for loader in loaders]) for _ in range(steps)]
            return digests, merge_cursors([json.loads(json.dumps(loader.cursor())) for loader in loaders])
        finally:
            for loader in loaders:
                loader.close()

    def steps(self) -> int:
        """Enough for every lane to have gone twice through its documents."""
        cursor, steps = None, 0
        while True:
            _, cursor = self.read(20, 1, 0, steps * BATCH, cursor)
            steps += 20
            epochs = [state[1] for states in cursor["lanes"].values() for state in states]
            if not cursor["lanes"]:
                return 120
            if len(epochs) == LANES and min(epochs) >= EPOCHS:
                return steps


def _digest(parts: list[Any]) -> str:
    """Over all fields of a global batch in the order of sample numbers, and the ledger's sum."""
    order = np.argsort(np.concatenate([batch.sample_ids.numpy() for batch, _ in parts]))
    state = hashlib.sha256(str(sum(total for _, total in parts) % 2**64).encode())
    tensors = [{**vars(batch), **batch.labels} for batch, _ in parts]
    for name in sorted(tensors[0].keys() - {"labels"}):
        values = [each[name] for each in tensors]
        if values[0] is not None:
            state.update(name.encode() + np.concatenate([value.numpy() for value in values])[order].tobytes())
    return state.hexdigest()


def interrupted(reader: Reader, steps: int, layouts: list[tuple[int, int]], draw: random.Random) -> list[str]:
    """The digests of a run that stops at random steps and goes on at another layout each time."""
    stops = sorted(draw.sample(range(1, steps), len(layouts) - 1))
    digests: list[str] = []
    cursor = None
    for (start, stop), (dp, workers) in zip(itertools.pairwise([0, *stops, steps]), layouts, strict=True):
        part, cursor = reader.read(stop - start, dp, workers, start * BATCH, cursor)
        digests += part
    return digests


def require_one_stream(folder: Path, kind: str, objective: str, layouts: list[tuple[int, int]] | None = None) -> None:
    draw = random.Random(f"{kind} {objective}")
    layouts = draw.sample(layouts or LAYOUTS, len(layouts or []) or SOME_LAYOUTS)
    reader = Reader(folder, kind, OBJECTIVES[objective])
    steps = reader.steps()
    expected, _ = reader.read(steps, 1, 0, 0, None)
    assert len(set(expected)) == steps
    assert interrupted(reader, steps, layouts, draw) == expected


QUICK = [
    ("jsonl", "causal-fim-apart"),
    ("parquet", "masked"),
    ("csv", "pairs"),
]


@pytest.mark.parametrize(("kind", "objective"), [pytest.param(*QUICK[0], marks=pytest.mark.slow), *QUICK[1:]])
def test_one_stream(tmp_path: Path, kind: str, objective: str) -> None:
    require_one_stream(tmp_path, kind, objective, LAYOUTS[QUICK.index((kind, objective)) :: len(QUICK)])


# Objectives see documents, not files: all of them on two ways of reading, and two on every other kind.
EVERY_OBJECTIVE = ("jsonl", "finite")
THOROUGH = [
    (kind, objective)
    for number, kind in enumerate(KINDS)
    for place, objective in enumerate(OBJECTIVES)
    if kind in EVERY_OBJECTIVE or (place - number) % len(OBJECTIVES) in (0, 3)
    if not (kind in WITHOUT_TARGETS and objective == "pairs") and (kind, objective) not in QUICK
] + [("tokens", "denoising")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "objective"), THOROUGH)
def test_one_stream_of_every_kind_and_objective(tmp_path: Path, kind: str, objective: str) -> None:
    require_one_stream(tmp_path, kind, objective)
