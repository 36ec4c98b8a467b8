"""Object stores, disk and S3, and blobs in them: names to bytes, with create-if-absent.

They know no log.
"""
