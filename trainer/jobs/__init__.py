"""The trainer's state machine and what reads it: a job's life, its commands, tables and events. No torch."""
