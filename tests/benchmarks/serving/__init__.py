"""What a server gives, measured in ratios within one run.

    make bench               writes build/bench/serving.json and serving.md

The model has random weights in BLOOM-560m's geometry, in float32; prompts are of the lengths that real ones have.
"""
