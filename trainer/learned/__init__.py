"""Fits the learned start, a network that predicts a word's initial vector (`python -m trainer fit-start`).

No server imports this package: it draws plots and makes its own training data.
"""
