"""One request: validated, prepared for the engine, in flight, written to files.

Makes no call of the model: the engine does.
"""
