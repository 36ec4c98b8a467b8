"""The frozen base model: load a checkpoint, put words into its text encoder, denoise, decode.

Knows no server, no job, no request; gRPC only in triton.py, which calls another server.
"""
