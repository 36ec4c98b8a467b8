"""The training of the bundled model and the judges: `python -m miniature train --help`."""
