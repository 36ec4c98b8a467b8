"""Uploaded pictures: received in chunks, checked, kept, deleted when nothing needs them. No torch."""
