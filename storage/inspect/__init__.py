"""Reads a whole store and names what is damaged: the log is replayed and compared with everything derived from it.

Changes nothing.
"""
