"""`llmscale data show`: samples as the model will see them, before a GPU is spent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell, visible
from data_pipeline.batch import Batch, make_batch
from data_pipeline.finite.heldout import EvaluationSet, build_evaluation_set
from data_pipeline.finite.samples import IndexedSamples
from data_pipeline.objectives import Objective, build_objective
from data_pipeline.objectives.packing import Sample
from data_pipeline.open_samples import open_samples
from data_pipeline.reading.dialogue import keep_turn_end
from data_pipeline.samples import ReadReport
from data_pipeline.sources.readers import by_reason
from data_pipeline.stream.samples import StreamSamples
from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.chat_files import carry_chat, provide_chat
from data_pipeline.tokenizer.frame import pad_token
from llmscale.config import RunConfig, load_config

_LEARNED, _PLAIN, _SPECIAL = "\x1b[1;32m", "\x1b[0m", "\x1b[36m"
"""Colours: of what is learned, of nothing, of special tokens."""


@dataclass(frozen=True)
class Shown:
    """A piece of a sample."""

    text: str
    learned: bool = False
    special: bool = False


def show_samples(
    path: Path, overrides: tuple[str, ...], *, count: int, evaluation: bool, colour: bool
) -> Iterator[str]:
    """Lines that show the first samples of a config's training data, or of its held-out documents.

    What is learned is in colour, or in `[[ ]]` without one; special tokens are spelled as the vocabulary has them.

    Args:
        count: samples to show.
        evaluation: the held-out split instead of the training data.

    Raises:
        UserError: the config or its data cannot be used.
    """
    config = load_config(path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tokenizer = _tokenizer(config, place)
        held = config.objective.evaluated() if evaluation else config.objective
        objective = build_objective(held, tokenizer, config.data.sequence_length, config.run.seed)
        samples, dropped = (
            _heldout(config, tokenizer, place, count) if evaluation else _training(config, tokenizer, place, count)
        )
        if not samples:
            raise UserError(f"{path} has no sample to show; add documents")
        batch = make_batch(objective.arrays(samples, range(len(samples))), np.arange(len(samples)))
        yield from _pages(tokenizer, objective, samples, batch, colour)
        yield from _summary(objective, samples, batch, dropped)


def _pages(
    tokenizer: Tokenizer, objective: Objective, samples: Sequence[Sample], batch: Batch, colour: bool
) -> Iterator[str]:
    for number, sample in enumerate(samples):
        turns = objective.turns(sample)
        about = [f"{len(sample.pieces)} document{'s' * (len(sample.pieces) != 1)}", *turns]
        yield f"--- sample {number}: {', '.join(about)}"
        for name, pieces in rows_of(objective, tokenizer, batch, number):
            yield f"{name}: " + "".join(_painted(piece, colour) for piece in pieces)
        for name, labels in batch.labels.items():
            if labels[number].dim() == 0:
                yield f"label {name}: {_labelled(objective, labels[number].item())}"
            elif labels.is_floating_point():
                values = zip(getattr(objective.config, "labels", []), labels[number].tolist(), strict=False)
                yield f"label {name}: {', '.join(f'{label} {value:g}' for label, value in values)}"
        yield ""


def rows_of(objective: Objective, tokenizer: Tokenizer, batch: Batch, number: int) -> Iterator[tuple[str, list[Shown]]]:
    """The rows of one sample by what they are: what an encoder reads, and what a decoder reads or gives."""
    spell = _Speller(tokenizer)
    inputs, targets = batch.inputs[number].tolist(), batch.targets[number].tolist()
    labels = {name: values[number].numpy() for name, values in batch.labels.items()}
    marked = objective.marked(labels, len(inputs))
    weights = batch.weights[number].tolist() if marked is None else marked.astype(float).tolist()
    if batch.encoder_inputs is not None:
        assert batch.encoder_weights is not None
        source = batch.encoder_inputs[number].tolist()
        real = int(batch.encoder_weights[number].sum())
        yield "source", [*spell.run(source[:real], [0.0] * real), *_padding(len(source) - real)]
        yield "target", _trimmed(spell, targets, weights)
        return
    if batch.encoder_weights is None:
        size = _real_size(batch, number, weights, pad_token(tokenizer))
        segments = None if batch.segment_ids is None else batch.segment_ids[number].tolist()
        padding = len(inputs) - size if segments is None else segments.count(-1)
        yield "text", [*_ahead(spell, inputs, targets, weights, segments or [0] * size), *_padding(padding)]
        return
    real_row = batch.encoder_weights[number].bool().tolist()
    named = labels.get(objective.config.name)
    if len(targets) == len(inputs) and (named is None or named.shape != (len(inputs),)):
        after = [[Shown("→"), *spell.run([target], [1.0])] for target in targets]
    elif named is not None and named.shape == (len(inputs),):
        after = [[Shown("→"), Shown(_labelled(objective, label), learned=True)] for label in named.tolist()]
    else:
        # One target of the whole text, or of several texts side by side.
        after, weights = [[] for _ in inputs], [0.0] * len(inputs) if marked is None else weights
    texts = max(1, len(inputs) // max(getattr(objective, "sequence_length", len(inputs)), 1))
    for text in range(texts):
        places = range(text * len(inputs) // texts, (text + 1) * len(inputs) // texts)
        shown = [place for place in places if real_row[place]]
        pieces = _followed(spell, inputs, weights, after, shown)
        yield f"text {text + 1}" if texts > 1 else "text", [*pieces, *_padding(len(places) - len(shown))]


def _followed(
    spell: _Speller, inputs: list[int], weights: list[float], after: list[list[Shown]], places: list[int]
) -> list[Shown]:
    """Tokens, each with what is learned of it; learned ones that nothing follows are marked themselves."""
    pieces: list[Shown] = []
    run: list[int] = []
    for place in places:
        run.append(place)
        if weights[place] and after[place]:
            pieces += [*spell.run([inputs[own] for own in run], [0.0] * len(run)), *after[place]]
            run = []
    return [*pieces, *spell.run([inputs[own] for own in run], [weights[own] * (not after[own]) for own in run])]


def _ahead(
    spell: _Speller,
    inputs: list[int],
    targets: list[int],
    weights: list[float],
    segments: list[int],
) -> list[Shown]:
    """Documents of a row whose tokens are each predicted from the one before: the first token, then the targets."""
    pieces: list[Shown] = []
    for number in dict.fromkeys(number for number in segments if number >= 0):
        places = [place for place, own in enumerate(segments) if own == number]
        if pieces:
            pieces.append(Shown(" ‖ "))
        first, last = places[0], places[-1] + 1
        if inputs[first:last] == targets[first:last]:  # read as a whole, with no token to predict
            pieces += spell.run(inputs[first:last], weights[first:last])
        else:
            pieces += spell.run([inputs[first], *targets[first:last]], [0.0, *weights[first:last]])
    return pieces


def _trimmed(spell: _Speller, targets: list[int], weights: list[float]) -> list[Shown]:
    size = max((place + 1 for place, weight in enumerate(weights) if weight), default=0)
    return [*spell.run(targets[:size], weights[:size]), *_padding(len(targets) - size)]


def _real_size(batch: Batch, number: int, weights: list[float], pad: int) -> int:
    """Positions of a row before its padding."""
    if batch.encoder_weights is not None:
        return int(batch.encoder_weights[number].sum())
    if batch.segment_ids is not None:
        return int((batch.segment_ids[number] >= 0).sum())
    inputs = batch.inputs[number].tolist()
    size = max((place + 1 for place, weight in enumerate(weights) if weight), default=0)
    return max(size, max((place + 1 for place, token in enumerate(inputs) if token != pad), default=0))


def _padding(count: int) -> list[Shown]:
    return [Shown(f"⟨padding × {count}⟩", special=True)] if count else []


class _Speller:
    """Spells tokens: text as it decodes, in runs of equal weight, special tokens by their names."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {token: text for text, token in tokenizer.spellings().items()}

    def run(self, tokens: Sequence[int], weights: Sequence[float]) -> list[Shown]:
        """Tokens that follow each other; those with a weight are learned."""
        pieces: list[Shown] = []
        text: list[int] = []
        learned = False

        def end() -> None:
            if text:
                shown = self._tokenizer.decode(text)
                # Part of a character has no text of its own.
                part = len(text) == 1 and "\ufffd" in shown
                pieces.append(Shown(self._tokenizer.token_text(text[0]) if part else shown, learned))
                text.clear()

        for token, weight in zip(tokens, weights, strict=True):
            if bool(weight) != learned or token in self._special:
                end()
            learned = bool(weight)
            if token in self._special:
                pieces.append(Shown(f"⟨{self._special[token]}⟩", learned, special=True))
            else:
                text.append(token)
        end()
        return pieces


def _painted(piece: Shown, colour: bool) -> str:
    text = visible(piece.text)
    if colour:
        style = _LEARNED if piece.learned else _SPECIAL if piece.special else ""
        return f"{style}{text}{_PLAIN}" if style else text
    return f"[[{text}]]" if piece.learned else text


def _labelled(objective: Objective, value: float) -> str:
    names = getattr(objective.config, "labels", None)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else "none"
    return str(value)


def _summary(objective: Objective, samples: Sequence[Sample], batch: Batch, dropped: dict[str, int]) -> Iterator[str]:
    learned, places = int((batch.weights > 0).sum()), batch.weights.numel()
    documents = sum(len(sample.pieces) for sample in samples)
    cut = sum(map(objective.is_cut, samples))
    yield (
        f"{len(samples)} samples of {documents} documents: {learned:,} of {places:,} targets learned, {cut} samples cut"
        " to fit"
    )
    if dropped:
        yield f"reading dropped or repaired: {by_reason(dropped)}"


def _tokenizer(config: RunConfig, folder: Path) -> Tokenizer:
    """The run's tokenizer where there is one that fits, else one made for the occasion."""
    roles = config.objective.roles(config.data.sequence_length)
    own = Path(config.run.directory) / "tokenizer"
    kept = folder / "tokenizer"
    if own.is_dir():
        try:
            return prepare_tokenizer(config.data, own, roles=roles)
        except UserError as error:
            tell(f"the run's tokenizer is not used: {error}")
    prepare_tokenizer(config.data, kept, tell, roles, config.train.init_from)
    if config.objective.reads_dialogues:
        inherit = Path(config.train.init_from) / "tokenizer" if config.train.init_from else None
        if inherit is not None and inherit.is_dir():
            carry_chat(inherit, kept)
        said = provide_chat(kept, config.data.tokenizer.chat_template, config.data.tokenizer.path)
        if said:
            tell(said)
        keep_turn_end(load_tokenizer(kept), kept)
    return load_tokenizer(kept)


def _training(config: RunConfig, tokenizer: Tokenizer, folder: Path, count: int) -> tuple[list[Sample], dict[str, int]]:
    found: dict[str, int] = {}

    def note(report: ReadReport) -> None:
        for reason, number in report.dropped.items():
            found[reason] = found.get(reason, 0) + number

    opened: StreamSamples | IndexedSamples = open_samples(
        config.data, tokenizer, config.objective, seed=config.run.seed, cache=folder / "cache", met=note
    )
    try:
        total = opened.per_epoch if isinstance(opened, IndexedSamples) else count
        samples = opened.samples(range(min(count, total)))
        if isinstance(opened, StreamSamples):
            found = dict(opened.corpus.dropped)
    finally:
        opened.close()
    return samples, found


def _heldout(config: RunConfig, tokenizer: Tokenizer, folder: Path, count: int) -> tuple[list[Sample], dict[str, int]]:
    documents: EvaluationSet = build_evaluation_set(
        config.data, tokenizer, folder / "cache", objective=config.objective, seed=config.run.seed
    )
    return documents.samples(range(min(count, len(documents)))), documents.dropped
