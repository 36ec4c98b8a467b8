"""The registry server: versions of words over the commit log, read and watched over gRPC.

Loads no torch, directly or indirectly.
"""
