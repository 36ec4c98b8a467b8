"""TrainerService's rpcs: a request is validated, its command committed, its answer made.

Loads no weights: validation needs a tokenizer and the model's description.
"""
