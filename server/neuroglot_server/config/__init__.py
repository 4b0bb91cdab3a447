"""Configuration: options, the configuration file, tenants, addresses, and checks of the installation.

Imports `core` only. Every folder may import it.
"""
