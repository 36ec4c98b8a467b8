"""Reads a whole store and names what is damaged: the log replayed, beside everything derived from it. Changes nothing."""
