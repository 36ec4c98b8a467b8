"""The thread that owns the model and draws the submitted requests, one call of the denoiser at a time.

No gRPC and no asyncio: events go to each request's mailbox.
"""
