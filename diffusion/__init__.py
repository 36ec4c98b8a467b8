"""The frozen base model: load a checkpoint, put words into its text encoder, denoise, decode.

Nothing here depends on a server, a job or a request. Only triton.py uses gRPC, to call Triton.
"""
