"""What the three servers share: start and drain, TLS, identity, errors, metrics, logs."""
