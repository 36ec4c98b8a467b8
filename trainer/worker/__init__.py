"""One device's worker: it takes jobs from a queue, trains them together on the engine, and publishes the results.

Serves no rpc.
"""
