"""Connections to a server: credentials, retries, resumable streams, and conversion of gRPC statuses to errors.

Imports `results` and below. Imported by `client` and `model`.
"""
