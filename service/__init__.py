"""The Generation server: draws pictures from prompts on one resident model.

It reads words from the registry through its API only.
"""
