"""GenerationService's rpcs: each validates its request, submits it to the engine and streams its mailbox's events.

Runs no model: the engine's thread does.
"""
