"""RegistryService's rpcs, by resource: a request is checked, committed or read from the view, and answered."""
