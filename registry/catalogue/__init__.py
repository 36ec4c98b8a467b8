"""The registry's book: what may be done with tenants, concepts, versions and aliases, and their tables."""
