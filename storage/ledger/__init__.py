"""The commit log, its derived views, and the interface of the state machines that define their content.

Commands and event kinds are defined by each server, not here.
"""
