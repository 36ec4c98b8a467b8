"""One request on its way: validated, prepared for the engine, in flight, written to files.

No model call: the engine makes them.
"""
