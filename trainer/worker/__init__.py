"""One device's worker: it takes jobs from a queue, has the engine train them together, and publishes the results.

No rpc is served here.
"""
