"""GenerationService's rpcs: a request is validated, admitted, and answered with the events of its mailbox.

Computes nothing: the engine's thread does.
"""
