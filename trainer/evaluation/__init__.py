"""How good a published version is: the loss of pictures, and what judges say of what is drawn with it."""
