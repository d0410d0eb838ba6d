"""Which special token has which role, told by the names that published tokenizers give them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

BAR = "\uff5c"
"""The vertical bar of full width in DeepSeek's special tokens, between which words are joined by `MARK`."""
MARK = "\u2581"
"""SentencePiece's space."""
NAMES: dict[str, tuple[str, ...]] = {
    "bos": (
        "<s>",
        "<bos>",
        "[BOS]",
        "<|begin_of_text|>",
        "<|startoftext|>",
        f"<{BAR}begin{MARK}of{MARK}sentence{BAR}>",
        f"<[begin{MARK}of{MARK}sentence]>",
        "<BOS_TOKEN>",
        "[CLS]",
        "<|endoftext|>",
    ),
    "eos": (
        "</s>",
        "<eos>",
        "[EOS]",
        "<|endoftext|>",
        "<|end_of_text|>",
        f"<{BAR}end{MARK}of{MARK}sentence{BAR}>",
        f"<[end{MARK}of{MARK}sentence]>",
        "<EOS_TOKEN>",
        "<eod>",
        "<|eos|>",
        "[SEP]",
    ),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", f"<{BAR}{MARK}pad{MARK}{BAR}>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "fim_prefix": (
        "<|fim_prefix|>",
        "<fim_prefix>",
        "<fim-prefix>",
        f"{MARK}<PRE>",
        f"<{BAR}fim{MARK}begin{BAR}>",
        "<|code_prefix|>",
        "<[fim-prefix]>",
        ">>PREFIX<<",
    ),
    "fim_middle": (
        "<|fim_middle|>",
        "<fim_middle>",
        "<fim-middle>",
        f"{MARK}<MID>",
        f"<{BAR}fim{MARK}end{BAR}>",  # behind the suffix
        "<|code_middle|>",
        "<[fim-middle]>",
        ">>MIDDLE<<",
    ),
    "fim_suffix": (
        "<|fim_suffix|>",
        "<fim_suffix>",
        "<fim-suffix>",
        f"{MARK}<SUF>",
        f"<{BAR}fim{MARK}hole{BAR}>",  # behind the prefix
        "<|code_suffix|>",
        "<[fim-suffix]>",
        ">>SUFFIX<<",
    ),
}
"""Names by role, the likeliest first."""
SENTINELS = ("<extra_id_{}>", MARK + "<extra_id_{}>")
"""T5's, and those of SentencePiece models that have them as pieces, such as mT5's."""


def known_roles(token_id: Callable[[str], int | None]) -> dict[str, int]:
    """Token ids by role, of the first name that `token_id` knows."""
    found: dict[str, int] = {}
    for role, names in NAMES.items():
        if (token := _first(token_id, names)) is not None:
            found[role] = token
    number = 0
    while (token := _first(token_id, [name.format(number) for name in SENTINELS])) is not None:
        found[f"sentinel_{number}"] = token
        number += 1
    return found


def _first(token_id: Callable[[str], int | None], names: Iterable[str]) -> int | None:
    return next((token for token in map(token_id, names) if token is not None), None)


def role_text(role: str) -> str:
    """How an appended token is shown."""
    return f"<extra_id_{role.removeprefix('sentinel_')}>" if _is_sentinel(role) else f"<{role}>"


def appending_order(roles: list[str]) -> list[str]:
    """Roles by increasing token id: sentinels come last and downwards, so that sentinel_0 has the highest id, as in T5
    (Raffel et al. 2020, whose sentinels are the last tokens of the vocabulary, counted from its end)."""
    plain = [role for role in roles if not _is_sentinel(role)]
    sentinels = [role for role in roles if _is_sentinel(role)]
    return plain + sorted(sentinels, key=lambda role: -int(role.removeprefix("sentinel_")))


def _is_sentinel(role: str) -> bool:
    return re.fullmatch(r"sentinel_\d+", role) is not None
