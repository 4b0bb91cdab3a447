"""A connection to a server: credentials, retries, streams that are resumed, and errors in place of gRPC statuses.

Imports `results` and below. Imported by `client` and `model`.
"""
