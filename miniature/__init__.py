"""The picture world that the bundled model draws, and the model itself in model/. Needs no torch."""
