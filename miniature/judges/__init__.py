"""Two judges that do not know each other: a miniature CLIP, and a classifier that never read a caption."""
