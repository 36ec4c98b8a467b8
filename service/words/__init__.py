"""What words mean: asked of the registry, cached until its watch tells of a change, their vectors on the device."""
