"""Who is admitted and who runs next, decided by measured costs.

Pure: no torch, no gRPC, no clock; times are handed in.
"""
