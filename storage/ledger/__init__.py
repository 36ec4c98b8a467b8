"""The commit log, its derived views, and the state machine's interface that says what they hold.

Knows no kind of command: those are each server's.
"""
