"""Serves bundles over gRPC."""
