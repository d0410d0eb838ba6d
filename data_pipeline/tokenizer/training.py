"""Training a SentencePiece model that loses nothing and spends few tokens on newlines and indentation."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import Span

CHUNK_CHARACTERS = 4000
"""Length of a training sentence: SentencePiece skips overlong ones."""
INDENTS = 12
"""Most pieces for a newline with its indentation; each must occur once in 20,000 characters."""


def train_sentencepiece(config: DataConfig, progress: Callable[[str], None] | None = None) -> bytes:
    """Contents of a `.model` file, trained on an even sample of the training documents (never the held-out ones).

    Newlines may stand inside pieces, and the commonest newline-and-indentation runs become pieces of their own:
    on Python sources 3.70 bytes a token, where sentences cut at newlines give 3.37. The same files give the same model.
    `progress` hears of damaged files and of many bad records.

    Raises:
        UserError: too little text, or a vocabulary smaller than the characters it must cover.
    """
    import sentencepiece

    settings = config.tokenizer.train
    corpus = Corpus.training(config)
    chunks = list(sample_text(corpus, settings.max_bytes))
    for warning in corpus.take_counts().warnings(config.bad_record_warning) if progress is not None else ():
        progress(warning)  # type: ignore[misc]
    # SentencePiece uses the tab as its own boundary and would skip the whole sentence; tabs are byte tokens instead.
    sentences = [part for chunk in chunks for part in chunk.split("\t") if part]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=settings.model,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            user_defined_symbols=common_indents(chunks),
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * CHUNK_CHARACTERS + 1,
            hard_vocab_limit=False,
            # Unigram's default million seeds takes twice as long and gives the same bytes per token.
            seed_sentencepiece_size=100_000,
            num_threads=min(16, os.cpu_count() or 1),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[-1].rpartition("] ")[2] if str(error) else "no text"
        raise UserError(
            f"data.tokenizer.train: cannot train {settings.vocab_size} pieces on {sum(map(len, chunks))} characters of"
            f" data.sources: {reason.strip()}; change vocab_size or character_coverage"
        ) from None
    return model.getvalue()


def common_indents(chunks: list[str]) -> list[str]:
    """The most frequent runs of newlines that end in spaces, in SentencePiece's spelling."""
    runs = Counter(run for chunk in chunks for run in re.findall(r"\n+ +", chunk))
    least = sum(map(len, chunks)) / 20_000
    common = sorted(((-count, run) for run, count in runs.items() if count > least), key=lambda item: item)
    return [run.replace(" ", "\u2581") for _, run in common[:INDENTS]]


def sample_text(corpus: Corpus, max_bytes: int) -> Iterator[str]:
    """Pieces of at most 4,000 characters from evenly spaced places of the training documents; all of them where they
    are no more than `max_bytes`."""
    spans = corpus.side(held_out=False)
    total = sum(span.size for span in spans)
    if total <= max_bytes:
        for span in spans:
            yield from _pieces(corpus, span, span.start)
        return
    passed = taken = 0
    for span in spans:
        passed += span.size
        # Each span earns its share; what short documents leave over goes to the next ones.
        due = max_bytes * passed // total - taken
        if due <= 0:
            continue
        for piece in _sample_span(corpus, span, -(-due // CHUNK_CHARACTERS)):
            data = piece.encode()[: max_bytes - taken]
            taken += len(data)
            yield data.decode(errors="ignore")


def _sample_span(corpus: Corpus, span: Span, count: int) -> Iterator[str]:
    """About `count` pieces from evenly spaced places of a span."""
    source = corpus.sources[corpus.files[span.file].source]
    middles = [(2 * i + 1, 2 * count) for i in range(count)]
    if source.whole_files:
        for document in corpus.read(span, span.start)[0]:
            room = max(0, len(document.text) - CHUNK_CHARACTERS)
            starts = {room * above // below for above, below in middles}
            yield from (document.text[start : start + CHUNK_CHARACTERS] for start in sorted(starts))
    elif not corpus.can_enter(span) or span.size <= CHUNK_CHARACTERS:
        # A shard or a compressed file is read from its start, so all pieces are taken there.
        yield from _up_to(count * CHUNK_CHARACTERS, _pieces(corpus, span, span.start))
    else:
        end = span.start
        for above, below in middles:
            position = span.start + (span.stop - span.start) * above // below
            # A long record may reach over the next place: it is not taken twice.
            documents, _ = corpus.read(span, max(position, end))
            texts: list[str] = []
            for document in documents:
                texts += _texts(document)
                end = document.position + 1
                if sum(map(len, texts)) >= CHUNK_CHARACTERS:
                    break
            yield from _up_to(CHUNK_CHARACTERS, texts)


def _up_to(characters: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _pieces(corpus: Corpus, span: Span, position: int | None) -> Iterator[str]:
    while position is not None:
        documents, position = corpus.read(span, position)
        for document in documents:
            for text in _texts(document):
                yield from _chunks(text)


def _texts(document: Document) -> list[str]:
    """Both of a pair."""
    return [document.text] if document.target is None else [document.text, document.target]


def _chunks(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHUNK_CHARACTERS):
        yield text[start : start + CHUNK_CHARACTERS]
