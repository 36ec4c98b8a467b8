"""Batches: many pictures that are drawn into the object store, after all other requests.

The log has what to draw, the store what is drawn. A server keeps no state that could be lost.
"""
