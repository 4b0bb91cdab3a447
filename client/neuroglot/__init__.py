"""The light client of neuroglot."""
