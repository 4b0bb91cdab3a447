"""Metrics, health over HTTP, traces and logs.

Imports `config` and `core`. Imported by `transport` and `lifecycle`.
"""
