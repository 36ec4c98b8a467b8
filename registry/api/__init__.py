"""The rpcs of RegistryService, one module per resource: validate a request, commit it or read a view, answer.

No SQL here: it belongs to the catalogue.
"""
