"""The rpcs of RegistryService, by resource: check the request, ask the catalogue, answer with messages."""
