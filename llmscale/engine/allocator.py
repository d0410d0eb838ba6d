"""Keep freed memory in the process instead of returning it to the system."""

import ctypes
import gc

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's <malloc.h>."""


def keep_large_blocks() -> bool:
    """Tell glibc to serve large blocks from its heap and never to shrink it, for the rest of the process.

    By default every tensor above 32 MiB is mapped again and its pages are cleared by the kernel on first touch, in each
    step. Since a training step asks for the same blocks again and again, keeping them costs no more than the peak.
    Call it before the first large tensor is made. Only CPU training gains: CUDA has an allocator of its own.

    Returns:
        True where it took effect; False without glibc (musl, macOS, Windows), where nothing changes.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, -1))


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more, before as much is asked for again; models are cycles of references."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
