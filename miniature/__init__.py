"""The picture world that the bundled model draws, and in model/ the model itself.

The world does not need torch; training/ and judges/ do.
"""
