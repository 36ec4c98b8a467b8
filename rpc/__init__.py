"""Parts that the three servers share: life cycle, TLS, identity, errors, metrics, logs, stores and pages.

Imports no server's messages and no torch.
"""
