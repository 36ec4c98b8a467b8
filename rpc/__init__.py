"""What the three servers share: the app's life, TLS, identity, errors, metrics, logs, stores and pages.

Knows no server's messages, and no torch.
"""
