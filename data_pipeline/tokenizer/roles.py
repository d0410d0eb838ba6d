"""Which special token has which role, told by the names that published tokenizers give them."""

from __future__ import annotations

import re
from collections.abc import Callable

NAMES: dict[str, tuple[str, ...]] = {
    "bos": (
        "<s>",
        "<bos>",
        "[BOS]",
        "<|begin_of_text|>",
        "<|startoftext|>",
        "<|begin▁of▁sentence|>",
        "[CLS]",
        "<|endoftext|>",
    ),
    "eos": (
        "</s>",
        "<eos>",
        "[EOS]",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end▁of▁sentence|>",
        "<eod>",
        "<|eos|>",
        "[SEP]",
    ),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "▁<PRE>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "▁<MID>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "▁<SUF>"),
}
"""Names by role, the likeliest first."""


def known_roles(token_id: Callable[[str], int | None]) -> dict[str, int]:
    """Token ids by role, of the first name that `token_id` knows; sentinels are T5's `<extra_id_0>` and so on."""
    found: dict[str, int] = {}
    for role, names in NAMES.items():
        token = next((token for token in map(token_id, names) if token is not None), None)
        if token is not None:
            found[role] = token
    while (token := token_id(f"<extra_id_{(number := sum(map(_is_sentinel, found)))}>")) is not None:
        found[f"sentinel_{number}"] = token
    return found


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
