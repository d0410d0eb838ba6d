"""What `llmscale data tokenizer` does and prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.base.terminal import tell
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.frame import conventions_of
from data_pipeline.tokenizer.statistics import sample_documents
from llmscale.config import load_config, resolve_directory

SHOWN_CHARACTERS = 160
"""Of the first document of each source."""


def make_tokenizer(path: Path, overrides: tuple[str, ...], output: Path | None) -> Iterator[str]:
    """Train or load the tokenizer of a config, keep it in `output`, and tell in lines what it is.

    `output` is where a run looks for it when not given, so that `train` finds it ready. A finished tokenizer there is
    shown, not made again.

    Raises:
        UserError: the tokenizer cannot be made or read, or `output` holds something else.
    """
    config = load_config(path, overrides)
    # Sources of kind tokens have no text to show, but need a tokenizer all the same.
    sources = [source for source in config.data.sources if not source.about.is_tokenised]
    corpus = Corpus.training(config.data.model_copy(update={"sources": sources})) if sources else None
    folder = output or Path(resolve_directory(config).run.directory) / "tokenizer"
    roles = config.objective.roles(config.data.sequence_length)
    tokenizer = prepare_tokenizer(config.data, folder, tell, roles, config.train.init_from)
    yield f"kind    {tokenizer.kind}"
    yield f"size    {tokenizer.vocab_size:,} tokens"
    yield f"roles   {_roles(tokenizer)}"
    kept = conventions_of(tokenizer)
    if kept is not None and kept.begin is not None:
        words = [" ".join(map(tokenizer.token_text, tokens)) or "nothing" for tokens in (kept.begin, kept.end)]
        yield f"texts   {words[0]} in front, {words[1]} behind, as the model of train.init_from reads them"
    yield f"digest  {tokenizer.digest[:12]}"
    yield f"folder  {folder}"
    if corpus is not None:
        yield from _examples(tokenizer, corpus)


def split(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds; "" for one that leaves a character incomplete, which a later one then adds."""
    pieces: list[str] = []
    done = ""
    for end, token in enumerate(ids, 1):
        text = tokenizer.decode(ids[:end])
        if text.endswith("\ufffd") and end < len(ids):
            pieces.append("")
        elif text.startswith(done):
            pieces.append(text[len(done) :])
            done = text
        else:  # some decoders change what they wrote before
            pieces.append(tokenizer.token_text(token))
            done = text
    return pieces


def _roles(tokenizer: Tokenizer) -> str:
    named = {role: token for role, token in tokenizer.special.items() if not role.startswith("sentinel_")}
    parts = [f"{role} {token} {tokenizer.token_text(token)}" for role, token in named.items()]
    sentinels = len(tokenizer.special) - len(named)
    if sentinels:
        first, last = tokenizer.special["sentinel_0"], tokenizer.special[f"sentinel_{sentinels - 1}"]
        parts.append(f"sentinel_0 to sentinel_{sentinels - 1} {first} to {last}")
    return ", ".join(parts)


def _examples(tokenizer: Tokenizer, corpus: Corpus) -> Iterator[str]:
    for index in range(len(corpus.sources)):
        document = next(sample_documents(corpus, index, 0), None)
        if document is None:
            continue
        text = document.text[:SHOWN_CHARACTERS]
        ids = tokenizer.encode(text)
        yield f"{corpus.files[document.file].path}: {len(text.encode()) / max(1, len(ids)):.2f} bytes a token"
        yield "  " + "|".join(repr(piece)[1:-1] for piece in split(tokenizer, ids))
