"""What a server is told before it starts: options, the configuration file, tenants, addresses, and the installation.

Imports `core` only. Every folder may import it.
"""
