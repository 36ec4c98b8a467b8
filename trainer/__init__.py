"""The trainer: pictures in, words out, published to the registry through its API.

Each room below may use those that `layers` in pyproject.toml lists after it.
"""
