"""TrainerService's rpcs: each validates its request, commits a command and returns a response.

Loads no weights: validation needs only a tokenizer and the model's description.
"""
