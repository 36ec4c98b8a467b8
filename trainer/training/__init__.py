"""Textual inversion of one job: recipe, samples, losses, optimiser steps. torch; no gRPC, no store, no clock."""
