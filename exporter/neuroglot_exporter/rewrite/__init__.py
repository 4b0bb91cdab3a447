"""Rewrites of a traced graph, one a file. They are independent of the family and change no weight.

    early_shapes      reads shapes before a transposition, which is then fused into a product
    expose_ffn        makes every activation an output, with inputs to mask and override it
    keep_sign         keeps ONNX Runtime's tanh from making inactive neurons active
    keep_trailing     restricts outputs to trailing positions
    fork_rows         lets several rows share keys and values that are fed once
    output_head       computes the logits with the output embedding as it is stored
    fold_transposes   stores a weight in the layout that its only consumer reads
    document          documents inputs and outputs in the graph itself

Each changes the model in place. Its docstring gives the state before and after; a graph that does not match raises
`RewriteError`, which names the node.
"""
