"""Inspection of a whole store: the log is replayed and compared with all objects derived from it, and damage is
reported.

Changes nothing.
"""
