"""Rewrites of a traced graph, one a file. They know no family and touch no weight.

    early_shapes      asks for shapes before a transposition, which then goes into a product
    expose_ffn        shows every activation and lets it be masked and overridden
    keep_sign         keeps ONNX Runtime's tanh from making inactive neurons active
    keep_trailing     gives outputs for trailing positions only
    fork_rows         lets rows go on from keys and values that are fed once
    output_head       computes the logits with the output embedding as it is stored
    fold_transposes   stores a weight the way its only use wants it
    document          says in the graph what its inputs and outputs are

Each changes the model in place, says in its docstring what must hold before and what holds after, and raises
`RewriteError`, naming the node, where it does not.
"""
