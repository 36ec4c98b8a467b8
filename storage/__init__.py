"""Object stores, the commit log on them, its derived views, and the tools for a whole store: inspection, garbage
collection, backup.

Imports no server, no torch and no gRPC.
"""
