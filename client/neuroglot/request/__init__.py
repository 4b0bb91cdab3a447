"""Requests: groups, neuron sets, selections, interventions and options, and their protobuf messages.

Imports `definitions`. Imported by everything above it, and by the server's `core`.
"""
