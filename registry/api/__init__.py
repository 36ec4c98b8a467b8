"""RegistryService's rpcs, by resource: a request is checked, its command committed or its rows read, its answer made."""
