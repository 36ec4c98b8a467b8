"""TrainerService's rpcs: a request is checked, its command committed, its answer made."""
