"""RegistryService's rpcs, by resource: a request is validated, committed or read from the view, and answered.

No SQL: the catalogue has it.
"""
