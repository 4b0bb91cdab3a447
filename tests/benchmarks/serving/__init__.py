"""What a server gives, measured in ratios within one run.

    make bench               writes docs/benchmarks.md and .json

The model has random weights in BLOOM-560m's geometry, in float32; prompts are of the lengths that real ones have.
"""
