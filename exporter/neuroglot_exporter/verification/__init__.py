"""Compares an exported graph with transformers, which computes the same with forward hooks."""
