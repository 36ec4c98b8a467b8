"""How good the bundled model and its judges are: `python -m benchmarks.miniature --help`."""
