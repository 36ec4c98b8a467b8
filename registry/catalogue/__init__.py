"""The registry's state machine: the rules and tables of tenants, concepts, versions and aliases.

No gRPC call, no object store, no clock: an event carries its time.
"""
