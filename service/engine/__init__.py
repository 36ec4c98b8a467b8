"""The thread that owns the model: what it is given, it draws, a call of the denoiser at a time. No gRPC."""
