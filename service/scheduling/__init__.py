"""Admission control and scheduling of requests, by measured costs.

Pure: no torch, no gRPC, no clock; times are passed in.
"""
