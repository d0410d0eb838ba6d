"""The .bin/.idx prefixes that a source of kind tokens names, and whether they were made as the run reads documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.durable import read_json
from data_pipeline.base.errors import UserError
from data_pipeline.finite.format import idx_path
from data_pipeline.sources.files import local_paths
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import Frame, conventions_of


def prepared_prefixes(paths: Sequence[str], where: str, tokenizer: Tokenizer) -> list[str]:
    """The prefixes that a source's patterns name, by pattern and then by name.

    Raises:
        UserError: a pattern that matches nothing, or tokens that another tokenizer than `tokenizer` made.
    """
    prefixes: list[str] = []
    for pattern in paths:
        bare = pattern.removesuffix(".idx").removesuffix(".bin")
        found = sorted(path.removesuffix(".idx") for path in local_paths(str(idx_path(bare))))
        if not found:
            raise UserError(f"{where}.paths: no file matches {bare}.idx; give the prefix of .bin and .idx files")
        prefixes += [prefix for prefix in found if prefix not in prefixes]
    for prefix in prefixes:
        meta = read_json(Path(prefix).with_name("meta.json"))
        digest = meta.get("tokenizer") if isinstance(meta, dict) else None
        if digest not in (None, tokenizer.digest):
            raise UserError(
                f"{prefix} was made with another tokenizer (digest {str(digest)[:12]}) than the run's"
                f" ({tokenizer.digest[:12]}); set data.tokenizer to the one in {Path(prefix).parent}/tokenizer"
            )
    return prefixes


def require_frame(prefixes: Sequence[str], tokenizer: Tokenizer, frame: Frame | None) -> None:
    """Refuse what `data prepare` wrote without the special tokens by which an imported model reads documents, or with
    another model's. A run from scratch takes tokens as they are.

    Args:
        frame: the special tokens around each document that the run wants; None: as in a run from scratch.

    Raises:
        UserError: names the prefix, and what documents of this run begin with.
    """
    if conventions_of(tokenizer) is None:
        return
    wanted = frame.key if frame is not None else ""
    for prefix in prefixes:
        meta = read_json(Path(prefix).with_name("meta.json"))
        # Others, such as Megatron-LM, write no such file.
        if isinstance(meta, dict) and "tokenizer" in meta and meta.get("frame", "") != wanted:
            texts = [tokenizer.token_text(token) for token in (frame.begin if frame is not None else ())]
            raise UserError(
                f"the documents of {prefix} begin or end with other special tokens than those of this run, which begin"
                f" with {' '.join(texts) or 'none'} (the model of train.init_from decides it); run llmscale data"
                f" prepare again with this run's config"
            )
