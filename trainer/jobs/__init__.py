"""The trainer's state machine and its readers: a job's life, its commands, tables and events.

No torch; what is pure says so in its first line.
"""
