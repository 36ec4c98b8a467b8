"""Measures a published version: its held-out loss, and the scores of judge models for pictures drawn with it.

No gRPC, no store.
"""
