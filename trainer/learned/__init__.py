"""A start that is learned: a small network that looks at a concept's pictures and says the vector to start from."""
