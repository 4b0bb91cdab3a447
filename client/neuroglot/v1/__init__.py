"""Generated from proto/neuroglot/v1 by `make proto`."""
