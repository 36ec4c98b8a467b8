"""The scripts behind every published figure, with their results beside them. Each compares within one run, and explains
itself with `python -m benchmarks.NAME --help`. No server imports this."""
