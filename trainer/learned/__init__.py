"""Fits the network that predicts where a word's vectors start (`python -m trainer fit-start`).

No server imports this room: it draws plots and makes its own training data.
"""
