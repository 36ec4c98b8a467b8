"""Uploaded pictures: received in chunks, checked before they are decoded, kept until no job needs them.

No torch.
"""
