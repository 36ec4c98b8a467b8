"""The trainer's state machine and its readers: a job's life, its commands, tables and events.

No torch. Pure modules say so in their docstring.
"""
