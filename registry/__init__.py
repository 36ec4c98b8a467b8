"""The registry server: the catalogue of words over the commit log, served over gRPC.

Imports no torch, directly or indirectly.
"""
