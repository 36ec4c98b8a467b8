"""The client of pseudoword. `__version__` is the version of everything that is released together."""

__version__ = "0.1.0"
