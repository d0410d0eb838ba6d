"""What a process of a run ends with."""

FAILED = 1
"""Anything that has no code of its own."""
USER_MISTAKE = 2
"""A mistake that the user can correct: one sentence on stderr, no traceback."""
PREEMPTED = 75
"""A preemption signal came: saved, or nothing to save yet; the same command goes on."""
HUNG = 76
"""No progress for too long: the ranks that lag are named, and a launcher may start all again."""
INTERRUPTED = 130
"""Ctrl-C, as shells have it."""
