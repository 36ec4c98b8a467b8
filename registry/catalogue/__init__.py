"""The registry's state machine: what may be done with tenants, concepts, versions and aliases, and their tables.

No gRPC call, no object store, no clock: an event's time comes with it.
"""
