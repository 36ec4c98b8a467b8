"""Object stores, the commit log on them, its derived views, and what looks after a whole store.

Knows no server, no torch, no gRPC.
"""
