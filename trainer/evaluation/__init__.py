"""How good a published version is: its held-out loss, and what judge models say of pictures drawn with it.

No gRPC, no store: figures in, figures out.
"""
