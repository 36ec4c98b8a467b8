"""Two independent judges: a miniature CLIP, and a classifier that is trained without captions."""
