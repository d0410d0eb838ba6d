"""Rectangles of global tensors, and flat row-major ranges of rectangles, as sets of boxes.

A box is a pair of coordinate tuples (low, high), high exclusive, in the coordinates of the global tensor. A scalar
is the box ((), ()). Everything that may overlap (pieces on disk, what a rank asks for) is cut into boxes, and
boxes are intersected and subtracted; no function here looks at single elements.
"""

from collections.abc import Iterable, Sequence
from math import prod

Box = tuple[tuple[int, ...], tuple[int, ...]]


def boxes(offsets: Sequence[int], sizes: Sequence[int], start: int, end: int) -> list[Box]:
    """The flat range [start, end) of the rectangle (offsets, sizes): at most 2n - 1 boxes for n dimensions."""
    if start >= end:
        return []
    if not sizes:
        return [((), ())]
    inner = prod(sizes[1:])
    first, last = start // inner, (end - 1) // inner
    if first == last:
        return _within_row(offsets, sizes, first, start - first * inner, end - first * inner)
    found: list[Box] = []
    if start % inner:
        found += _within_row(offsets, sizes, first, start - first * inner, inner)
        first += 1
    tail: list[Box] = []
    if end % inner:
        tail = _within_row(offsets, sizes, last, 0, end - last * inner)
        last -= 1
    if first <= last:
        low = (offsets[0] + first, *offsets[1:])
        high = (offsets[0] + last + 1, *(o + s for o, s in zip(offsets[1:], sizes[1:], strict=True)))
        found.append((low, high))
    return found + tail


def _within_row(offsets: Sequence[int], sizes: Sequence[int], row: int, start: int, end: int) -> list[Box]:
    at = offsets[0] + row
    return [((at, *low), (at + 1, *high)) for low, high in boxes(offsets[1:], sizes[1:], start, end)]


def intersect(a: Box, b: Box) -> Box | None:
    """The common part of two boxes, or None."""
    low = tuple(map(max, a[0], b[0]))
    high = tuple(map(min, a[1], b[1]))
    return None if any(x >= y for x, y in zip(low, high, strict=True)) else (low, high)


def subtract(a: Box, inside: Box) -> list[Box]:
    """What is left of box `a` without `inside`, a box within it: at most 2n boxes."""
    left: list[Box] = []
    low, high = list(a[0]), list(a[1])
    for axis, (cut_low, cut_high) in enumerate(zip(*inside, strict=True)):
        if low[axis] < cut_low:
            left.append((tuple(low), (*high[:axis], cut_low, *high[axis + 1 :])))
        if cut_high < high[axis]:
            left.append(((*low[:axis], cut_high, *low[axis + 1 :]), tuple(high)))
        low[axis], high[axis] = cut_low, cut_high
    return left


def take(wanted: list[Box], given: Iterable[Box]) -> tuple[list[Box], list[Box]]:
    """(what of `wanted` lies in `given`, what does not), both as disjoint boxes when those of `wanted` are."""
    taken: list[Box] = []
    for box in given:
        missing: list[Box] = []
        for want in wanted:
            common = intersect(want, box)
            if common is None:
                missing.append(want)
            else:
                taken.append(common)
                missing += subtract(want, common)
        wanted = missing
    return taken, wanted
