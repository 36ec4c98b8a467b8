"""Measurements of the registry: the catalogue's rpcs and the log's commits, against a server that only echoes
(`echo`)."""
