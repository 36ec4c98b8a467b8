"""The commit log, its derived views, and the state machine that says what they hold. No gRPC, no torch."""
