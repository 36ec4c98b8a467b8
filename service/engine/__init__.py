"""The thread that owns the model: what it is given it draws, one call of the denoiser at a time.

No gRPC and no asyncio: events leave through each request's mailbox.
"""
