"""What words mean: asked of the registry, cached until its watch reports a change, their vectors on the device.

Nothing here reads a prompt or a picture.
"""
