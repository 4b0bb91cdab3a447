"""BLOOM and BLOOMZ: a plain FFN with a GELU (tanh form), ALiBi, a tied head."""

from __future__ import annotations

from neuroglot_exporter.families.family import Family, Ffn

BLOOM = Family(
    name="bloom",
    model_types=("bloom",),
    ffns=(
        Ffn(
            component="decoder",
            activation="transformer.h.{i}.mlp.gelu_impl",
            down_projection="transformer.h.{i}.mlp.dense_4h_to_h",
            depth=lambda config: config.n_layer,
        ),
    ),
    output_embedding="lm_head",
    activation_function=lambda _config: "gelu",
    max_positions=lambda _config: None,
    harmless=frozenset(
        {
            # Geometry, attention and norms: the FFN is found by its module, whatever surrounds it.
            *("vocab_size", "hidden_size", "n_embed", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads"),
            *("layer_norm_epsilon", "apply_residual_connection_post_layernorm", "seq_length", "offset_alibi"),
            # Training only.
            *("initializer_range", "hidden_dropout", "attention_dropout"),
            # Left over from Megatron; transformers reads none of them, or only together with slow_but_exact.
            *("pretraining_tp", "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"),
            *("skip_bias_add", "skip_bias_add_qkv"),
            "use_cache",
        }
    ),
    # slow_but_exact cuts the down projection into slices; n_inner is ignored by transformers, so it must not be set.
    pinned={"slow_but_exact": (False,), "n_inner": (None,)},
)
