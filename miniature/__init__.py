"""The picture world that the bundled model draws, and the model itself in model/.

The world needs no torch; training/ and judges/ do.
"""
