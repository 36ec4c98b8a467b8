"""The Python client of pseudoword. `__version__` is the version of all distributions and servers."""

__version__ = "0.1.0"
