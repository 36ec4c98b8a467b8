"""The Generation server: sentences in, pictures out, from one resident model.

Words come from the registry through its API only.
"""
