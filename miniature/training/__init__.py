"""How the bundled model and the judges are made: `python -m miniature train --help`."""
