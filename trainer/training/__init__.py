"""Textual inversion of one job: recipe, samples, losses, optimiser steps.

No gRPC, no store, no clock: equal tasks give equal vectors.
"""
