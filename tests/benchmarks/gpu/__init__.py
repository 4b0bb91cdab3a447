"""A CUDA device against the processor: the same answers, and how much faster they come."""
