"""The samples that a config trains on: of raw text as it is read, or of documents that are tokenised already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.cache import materialise
from data_pipeline.finite.prefixes import prepared_prefixes, require_frame
from data_pipeline.finite.samples import IndexedSamples
from data_pipeline.finite.shards import Shards
from data_pipeline.objectives import Objective, build_objective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.samples import ReadReport
from data_pipeline.sources.corpus import Corpus, survey_sources
from data_pipeline.sources.readers import BadRecord
from data_pipeline.sources.readers.kinds import Survey
from data_pipeline.stream.lanes import TooFewSpansError
from data_pipeline.stream.mixture import Mixture
from data_pipeline.stream.samples import StreamSamples
from data_pipeline.tokenizer import Tokenizer

SMALL = 1 << 26
"""Bytes of text that take seconds to tokenise, and are read as a finite set where not every lane would get a part."""


def open_samples(
    config: DataConfig,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    *,
    seed: int,
    cache: str | Path | None,
    epochs: float | None = None,
    progress: Callable[[str], None] | None = None,
    surveys: Sequence[Survey] | None = None,
    met: Callable[[ReadReport], None] | None = None,
) -> StreamSamples | IndexedSamples:
    """The samples of `config.sources`: a stream, or a finite set if the config says so or the text is too little to be
    dealt to the lanes.

    Args:
        config: the data section.
        tokenizer: has the roles that the objective needs.
        objective: what is made of the documents.
        seed: decides order and random choices.
        cache: where tokenised documents are kept, for raw text that is read as a finite set; several processes may
            write it at once. None: raw text is streamed or refused.
        epochs: see `IndexedSamples`.
        progress: told what takes time.
        surveys: `survey_sources` of the config, where that has been done.
        met: told what was wrong with the documents of each source that is tokenised now.

    Raises:
        UserError: unusable files or settings, or tokens of another tokenizer.
    """
    made = build_objective(objective, tokenizer, config.sequence_length, seed)
    if not config.finite:
        if epochs is not None:
            raise UserError(
                f"train.epochs ({epochs}) needs data that have an end; set data.order=finite, or give train.steps"
            )
        surveys = surveys or survey_sources(config)
        try:
            return StreamSamples(config, tokenizer, made, seed, surveys)
        except TooFewSpansError:
            if cache is None or not is_small(surveys):
                raise
            if progress is not None:
                progress(f"too little text for {config.lanes} lanes (data.lanes): reading it as data.order=finite does")
    made.require(config.sources, "data.sources")
    kinds = {source.about.is_tokenised for source in config.sources}
    if len(kinds) > 1:
        raise UserError(
            "data.sources: some are of kind tokens and some are text; tokenise the text first (llmscale data prepare)"
        )
    if kinds == {True}:
        sources = [
            prepared_prefixes(source.paths, f"data.sources[{index}]", tokenizer)
            for index, source in enumerate(config.sources)
        ]
        for prefixes in sources:
            require_frame(prefixes, tokenizer, made.frame)
    else:
        assert cache is not None
        if progress is not None:
            progress(f"tokenising the training documents into {cache}")
        sources = [
            [_tokenised(config, index, survey, tokenizer, cache, made, met)]
            for index, survey in enumerate([None] * len(config.sources) if surveys is None else surveys)
        ]
    sizes = [sum(Path(f"{prefix}.bin").stat().st_size for prefix in prefixes) for prefixes in sources]
    if kinds == {True} and any(sizes) and not all(sizes):
        number = sizes.index(0)
        raise UserError(
            f"data.sources[{number}] holds no text: {', '.join(sources[number])} has no token; leave the source out"
        )
    mixture = Mixture(config, sizes, made.targets_per_sample, seed)
    groups = [
        Shards(
            [
                prefix
                for source, prefixes in enumerate(sources)
                if mixture.group_of_source[source] == group
                for prefix in prefixes
            ]
        )
        for group in range(mixture.groups)
    ]
    return IndexedSamples(groups, mixture, made, seed, tokenizer.vocab_size, epochs)


def is_small(surveys: Sequence[Survey]) -> bool:
    """Whether sources hold so little text that it may be tokenised first; not where a library finds their shards."""
    known = all(len(survey.spans) for survey in surveys)
    return known and sum(file.size for survey in surveys for file in survey.files) <= SMALL


def _tokenised(
    config: DataConfig,
    index: int,
    survey: Survey | None,
    tokenizer: Tokenizer,
    cache: str | Path,
    objective: Objective,
    met: Callable[[ReadReport], None] | None,
) -> str:
    """The prefix of one source's training documents, written unless it is there."""
    if survey is not None:
        survey = survey._replace(files=[file._replace(source=0) for file in survey.files])
    alone = config.model_copy(update={"sources": [config.sources[index]]})
    corpus = Corpus.training(alone, None if survey is None else [survey])
    stored = objective.config.stored
    kept = "-".join([f"{int(stored.target)}", *stored.values, *filter(None, [objective.form])])
    prefix = Path(cache) / f"training-{corpus.digest[:12]}-{tokenizer.digest[:8]}-{kept}"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    bad: list[BadRecord] = []

    def documents() -> Iterator[Document]:
        for span in corpus.side(held_out=False):
            position: int | None = span.start
            while position is not None:
                block, position = corpus.read(span, position)
                bad.extend(corpus.take_bad())
                yield from objective.checked(block, corpus.place, corpus.dropped)

    names = [file.path for file in corpus.files]
    digest = f"{corpus.digest} training{objective.form}"
    materialise(documents(), tokenizer, prefix, digest=digest, stored=stored, frame=objective.frame, files=names)
    if met is not None:
        met(ReadReport(dict(corpus.dropped), bad, corpus.bad_count, corpus.records_read))
    return str(prefix)
