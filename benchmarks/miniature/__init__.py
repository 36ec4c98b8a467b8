"""Measurements of the bundled model and its judges: `python -m benchmarks.miniature --help`."""
