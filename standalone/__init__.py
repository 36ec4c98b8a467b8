"""Commands that the server distribution adds to the command line: up, demo, fsck, gc, backup, restore, fold,
export-triton.

Nothing imports this package.
"""
