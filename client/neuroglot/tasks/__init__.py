"""Tasks with parallel prompts: where the groups of an analysis come from."""
