"""Speed measurements: `python -m benchmarks.NAME` prints one JSON line; progress goes to stderr."""
