"""Resolves words through the registry, caches the results until its watch reports a change, keeps vectors on the
device.

Reads no prompts and no pictures.
"""
