"""Object stores (disk and S3) and blobs in them: names to bytes, with create-if-absent.

Nothing here depends on the log.
"""
