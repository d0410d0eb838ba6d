"""Where the frames of a Zstandard file begin (RFC 8878, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_HEAD = 18
"""Most bytes of a frame's head."""


def window_bytes(head: bytes) -> int:
    """The memory that a frame needs, from the first 18 bytes of the file; 1 MiB where they do not tell."""
    import zstandard

    try:
        return max(1, zstandard.get_frame_parameters(head).window_size)
    except zstandard.ZstdError:
        return 1 << 20


def frame_content(head: bytes) -> int | None:
    """The decompressed bytes that a frame says it has, from its first 18 bytes; None where they do not tell."""
    import zstandard

    try:
        content = zstandard.frame_content_size(head)
    except zstandard.ZstdError:
        return None
    return content if content >= 0 else None


def frame_at(read: Callable[[int, int], bytes], offset: int) -> tuple[int, int]:
    """The last frame that surely starts at or before a decompressed offset.

    Goes from head to head, block by block, without decompressing; it ends where a frame does not tell its size.

    Args:
        read: gives bytes of the file by place and size.

    Returns:
        The frame's place in the file, and the decompressed offset of its first byte.
    """
    import zstandard

    best, place, start = (0, 0), 0, 0
    while start <= offset:
        best = (place, start)
        head = read(place, _HEAD)
        if len(head) < 8:
            break
        if int.from_bytes(head[:4], "little") in _SKIPPABLE:
            place += 8 + int.from_bytes(head[4:8], "little")
            continue
        try:
            content = zstandard.frame_content_size(head)
            checksum = zstandard.get_frame_parameters(head).has_checksum
            size = zstandard.frame_header_size(head)
        except zstandard.ZstdError:
            break
        if content < 0:
            break
        end = _blocks_end(read, place + size)
        if end is None:
            break
        place, start = end + 4 * checksum, start + content
    return best


def _blocks_end(read: Callable[[int, int], bytes], place: int) -> int | None:
    """Place behind the last block of a frame, from the place of its first block; None where the file ends before."""
    while True:
        head = int.from_bytes(field := read(place, 3), "little")
        if len(field) < 3:
            return None
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        place += 3 + (1 if kind == 1 else size)
        if last:
            return place
