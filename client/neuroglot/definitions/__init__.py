"""What client, server and exporter agree on: the bundle, its probe, gold tokens, normalised answers, packed arrays.

Imports `errors` and the contract's messages only. Everything may import it.
"""
