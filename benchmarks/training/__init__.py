"""Measurements of training: time, fidelity, starts and stopping, against diffusers' textual_inversion.py on the same
toys."""
