"""The same items in several evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from llmscale.evaluate.compare.scored import Scored
from llmscale.evaluate.compare.side import Evaluated

_Key = tuple[str, int]
"""An item's digest, and how many of the same digest come before it."""


def aligned(evaluations: Sequence[Scored], common: bool) -> list[Evaluated]:
    """The items of each evaluation in the order of the first one.

    Args:
        common: take the items that all have, where they do not have the same.

    Raises:
        UserError: items differ and `common` is not set, or none is in all.
    """
    first, *others = evaluations
    keys = [_keys(scored) for scored in evaluations]
    for scored, other in zip(others, keys[1:], strict=True):
        if keys[0].keys() != other.keys() and not common:
            raise UserError(_difference(first, keys[0], scored, other))
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    if not shared:
        raise UserError(
            f"{first.path} and {others[-1].path} have no item of {first.task} in common; evaluate both on one version"
            " of the task"
        )
    most = max(map(len, keys))
    if len(shared) < most:
        tell(f"warning: {first.task}: compared on the {len(shared):,} items that all have, of up to {most:,}")
    return [
        Evaluated(scored, [places[key] for key in shared]) for scored, places in zip(evaluations, keys, strict=True)
    ]


def _keys(scored: Scored) -> dict[_Key, int]:
    """The place of each item."""
    times: dict[str, int] = {}
    keys = {}
    for place, item in enumerate(scored.items):
        keys[item, times.get(item, 0)] = place
        times[item] = times.get(item, 0) + 1
    return keys


def _difference(first: Scored, ours: dict[_Key, int], second: Scored, theirs: dict[_Key, int]) -> str:
    alone = [(first, key) for key in ours if key not in theirs] + [(second, key) for key in theirs if key not in ours]
    scored, (item, _) = alone[0]
    return (
        f"{first.path} has {len(ours):,} items of {first.task} and {second.path} {len(theirs):,}, of which"
        f" {len(ours.keys() & theirs.keys()):,} are the same; the first that only {scored.path} has is {item}; evaluate"
        " both on the same items, or compare those they share by --common"
    )
