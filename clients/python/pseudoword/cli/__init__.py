"""The command line: `pseudoword learn`, `draw`, `words`, ... and the server distribution's `up` and `demo`."""

from pseudoword.cli.main import main

__all__ = ["main"]
