"""Which items of a task a run was trained on, and what that did to its score. Nothing here needs torch."""
