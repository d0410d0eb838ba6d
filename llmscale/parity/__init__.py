"""Does a layout compute what one process computes? Runs of a few steps on CPU ranks, compared."""
