"""Batches: many pictures drawn into the object store, behind all other requests.

The log says what to draw, the store what is drawn; a server keeps nothing that matters.
"""
