"""The stream of training samples: the same whatever reads it, from wherever it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.sources.corpus import Corpus
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import (
    WRITERS,
    bytes_tokenizer,
    config,
    reference_lane,
    texts,
    write_files,
    write_jsonl,
    write_lines,
    write_parquet,
)

SEED = 5

# More workers than this machine has cores are the point here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Stream:
    """Reads global batches with any layout, as a training run does."""

    def __init__(self, data: DataConfig, tokenizer: Path, batch: int = 12) -> None:
        self.data, self.tokenizer, self.batch = data, tokenizer, batch

    def read(
        self, steps: int, dp: int = 1, workers: int = 0, first: int = 0, cursor: dict[str, Any] | None = None
    ) -> tuple[dict[int, list[int]], list[int], dict[str, Any]]:
        """Tokens of every sample by k, the ledger sum of each step, and the merged cursor at the end."""
        data = self.data.model_copy(update={"workers": workers})
        loaders = [
            TrainLoader(
                data,
                load_tokenizer(self.tokenizer),
                seed=SEED,
                dp_rank=rank,
                dp_size=dp,
                first_sample=first,
                cursor=cursor,
            )
            for rank in range(dp)
        ]
        samples: dict[int, list[int]] = {}
        sums = []
        for _ in range(steps):
            total = 0
            for loader in loaders:
                batch, part = loader.take(self.batch // dp)
                total += part
                for k, inputs, targets in zip(batch.sample_ids, batch.inputs, batch.targets, strict=True):
                    assert torch.equal(inputs[1:], targets[:-1])
                    samples[int(k)] = [*inputs.tolist(), int(targets[-1])]
            sums.append(total % 2**64)
        merged = merge_cursors([json.loads(json.dumps(loader.cursor())) for loader in loaders])
        for loader in loaders:
            loader.close()
        return samples, sums, merged


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = tmp_path_factory.mktemp("stream")
    return Stream(config(write_jsonl(folder / "a", texts(90))), bytes_tokenizer(folder))


def test_samples_are_those_of_the_definition(stream: Stream) -> None:
    steps = 40
    samples, _, _ = stream.read(steps)
    assert sorted(samples) == list(range(steps * 12))
    for lane in range(12):
        ours = [samples[k] for k in range(lane, steps * 12, 12)]
        assert ours == reference_lane(stream.data, SEED, lane, steps)


def test_each_token_is_a_target_once_an_epoch(stream: Stream) -> None:
    data = stream.data.model_copy(update={"lanes": 1, "shuffle_buffer": 0})
    documents = sorted(document.text for document in Corpus.training(data).documents())
    tokens = sum(len(text.encode()) + 1 for text in documents)
    samples, _, _ = Stream(data, stream.tokenizer, batch=1).read(tokens // 32)
    targets = [token for k in sorted(samples) for token in samples[k][1:]]
    whole = bytes(0 if token == 2 else token - 3 for token in targets).decode(errors="replace").split("\0")
    assert set(whole[:-1]) <= set(documents)
    assert len(whole) > len(documents) - 3


@pytest.mark.parametrize("dp", [1, 3, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (2, 4, 6))])
def test_neither_ranks_nor_workers_change_a_sample(stream: Stream, dp: int) -> None:
    samples, sums, cursor = stream.read(4)
    for workers in (0, 1, 2, 3, 5):
        assert stream.read(4, dp, workers) == (samples, sums, cursor)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.integers(0, 40),
    layouts=st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6, 12])),
    workers=st.sampled_from([0, 0, 0, 2]),
)
def test_a_resume_anywhere_continues_exactly(stream: Stream, stop: int, layouts: tuple[int, int], workers: int) -> None:
    samples, sums, _ = stream.read(stop + 3)
    _, _, cursor = stream.read(stop, layouts[0])
    after, after_sums, _ = stream.read(3, layouts[1], workers, first=stop * 12, cursor=cursor)
    assert after == {k: tokens for k, tokens in samples.items() if k >= stop * 12}
    assert after_sums == sums[stop:]


def test_without_a_cursor_earlier_samples_are_passed_over(stream: Stream) -> None:
    samples, sums, cursor = stream.read(5)
    after, after_sums, at_end = stream.read(2, dp=2, workers=2, first=36)
    assert after == {k: tokens for k, tokens in samples.items() if k >= 36}
    assert (after_sums, at_end) == (sums[3:], cursor)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_every_kind_gives_its_documents_and_resumes(kind: str, tmp_path: Path) -> None:
    documents = [text.replace("\n", " ") for text in texts(90)]
    data = config(WRITERS[kind](tmp_path / "data", documents))
    assert sorted(document.text for document in Corpus.training(data).documents()) == sorted(documents)
    stream = Stream(data, bytes_tokenizer(tmp_path))
    samples, sums, _ = stream.read(30)
    _, _, cursor = stream.read(17, dp=2)
    after = stream.read(13, dp=3, workers=2, first=17 * 12, cursor=cursor)
    assert after[0] == {k: tokens for k, tokens in samples.items() if k >= 17 * 12}
    assert after[1] == sums[17:]


def test_several_sources_are_read_in_proportion_to_their_bytes(tmp_path: Path) -> None:
    writers = (write_files, write_lines, write_jsonl, write_parquet)
    sources = [writer(tmp_path / str(i), texts(40, seed=i)) for i, writer in enumerate(writers)]
    data = config(*sources)
    stream = Stream(data, bytes_tokenizer(tmp_path))
    corpus = Corpus.training(data)
    total = sum(len(document.text.encode()) + 1 for document in corpus.documents())
    samples, _, _ = stream.read(total // 32 // 12)
    text = "".join(bytes(max(0, t - 3) for t in tokens).decode(errors="ignore") for tokens in samples.values())
    found = [text.count(f"\x00{i}.") for i in range(4)]
    assert all(25 <= count <= 55 for count in found), found
    assert stream.read(6, dp=4, workers=3)[0] == {k: samples[k] for k in range(72)}


def test_inputs_belong_to_the_document_of_their_target(stream: Stream) -> None:
    apart = CausalObjective(separate_documents=True)
    with TrainLoader(
        stream.data, load_tokenizer(stream.tokenizer), objective=apart, seed=SEED, dp_rank=0, dp_size=1
    ) as loader:
        batch, _ = loader.take(48)
    assert batch.segment_ids is not None
    assert batch.positions is not None
    for targets, segments, positions in zip(
        batch.targets.tolist(), batch.segment_ids.tolist(), batch.positions.tolist(), strict=True
    ):
        document = place = 0
        for target, segment, position in zip(targets, segments, positions, strict=True):
            assert (segment, position) == (document, place)
            document, place = (document + 1, 0) if target == 2 else (document, place + 1)
    assert float(batch.weights.min()) == 1.0
    assert batch.inputs.dtype == batch.targets.dtype == batch.segment_ids.dtype == torch.int64


def test_a_resume_reads_no_more_after_many_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(3000), files=1), span_bytes=20_000, lanes=4)
    stream = Stream(data, bytes_tokenizer(tmp_path), batch=4)
    reads: list[int] = []
    original = Corpus.read

    def counted(self: Corpus, *arguments: Any, **named: Any) -> Any:
        documents, position = original(self, *arguments, **named)
        reads.append(sum(len(document.text) for document in documents))
        return documents, position

    costs = []
    for stop in (10, 300, 900):
        _, _, cursor = stream.read(stop)
        monkeypatch.setattr(Corpus, "read", counted)
        reads.clear()
        stream.read(1, first=stop * 4, cursor=cursor)
        monkeypatch.setattr(Corpus, "read", original)
        costs.append((len(reads), sum(reads)))
    assert max(count for count, _ in costs) <= 8
    assert max(size for _, size in costs) <= 4 * 2 * 20_000


def test_lanes_hold_about_the_same_bytes(stream: Stream) -> None:
    from data_pipeline.stream.lanes import deal_spans

    spans = Corpus.training(stream.data.model_copy(update={"span_bytes": 50})).side(held_out=False)
    dealt = deal_spans(spans, 12, SEED)
    assert sorted(i for lane in dealt for i in lane) == list(range(len(spans)))
    sizes = [sum(spans[i].size for i in lane) for lane in dealt]
    assert max(sizes) - min(sizes) <= 50
    assert dealt != deal_spans(spans, 12, SEED + 1)


def test_ledger_sum_is_the_formula(stream: Stream) -> None:
    import xxhash

    data = stream.data.model_copy(update={"lanes": 1, "shuffle_buffer": 0})
    samples, sums, _ = Stream(data, stream.tokenizer, batch=1).read(1)
    corpus = Corpus.training(data)
    first = next(
        document for document in corpus.documents() if bytes(t - 3 for t in samples[0][1:]) in document.text.encode()
    )
    message = np.array([0, first.id], dtype="<u8").tobytes() + np.array(samples[0], dtype="<u4").tobytes()
    assert sums == [xxhash.xxh64_intdigest(message)]


@pytest.mark.parametrize(
    ("lanes", "dp", "message"), [(12, 5, "use 4 or 6"), (12, 24, "use 12 data"), (7, 2, "use 1 or 7")]
)
def test_ranks_must_divide_the_lanes(stream: Stream, lanes: int, dp: int, message: str) -> None:
    data = stream.data.model_copy(update={"lanes": lanes})
    with pytest.raises(UserError, match=rf"data.lanes \({lanes}\) .* \({dp}\); {message}"):
        TrainLoader(data, load_tokenizer(stream.tokenizer), seed=0, dp_rank=0, dp_size=dp)


def test_more_lanes_than_spans_names_a_legal_number(stream: Stream) -> None:
    """Where the text may not be kept as tokens, or is too much to tokenise first."""
    spans = len(Corpus.training(stream.data).spans)
    data = stream.data.model_copy(update={"lanes": 960})
    message = rf"data.lanes \(960\) exceeds the {spans} spans .* set data.lanes to {spans} or less"
    with pytest.raises(UserError, match=message):
        TrainLoader(data, load_tokenizer(stream.tokenizer), seed=0, dp_rank=0, dp_size=1)
    TrainLoader(
        data.model_copy(update={"lanes": spans}), load_tokenizer(stream.tokenizer), seed=0, dp_rank=0, dp_size=1
    ).close()
