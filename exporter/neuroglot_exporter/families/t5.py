"""T5 and Flan-T5: encoder and decoder, a plain FFN with ReLU or a gated one with GELU, relative positions."""

from __future__ import annotations

from typing import Any

from neuroglot_exporter.families.family import Family, Ffn


def output_scale(config: Any) -> float:
    """Factor of the last hidden state before the head, `d_model**-0.5` if the head is tied, as in transformers."""
    scale: float = config.d_model**-0.5 if config.tie_word_embeddings else 1.0
    return scale


T5 = Family(
    name="t5",
    model_types=("t5",),
    ffns=(
        Ffn(
            component="encoder",
            activation="encoder.block.{i}.layer.1.DenseReluDense.act",
            down_projection="encoder.block.{i}.layer.1.DenseReluDense.wo",
            depth=lambda config: config.num_layers,
        ),
        Ffn(
            component="decoder",
            activation="decoder.block.{i}.layer.2.DenseReluDense.act",
            down_projection="decoder.block.{i}.layer.2.DenseReluDense.wo",
            depth=lambda config: config.num_decoder_layers,
        ),
    ),
    output_embedding="lm_head",
    activation_function=lambda config: config.dense_act_fn,
    max_positions=lambda _config: None,
    output_scale=output_scale,
    harmless=frozenset(
        {
            # Geometry, attention, positions and norms: the FFN is found by its modules, whatever surrounds it.
            *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"),
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "layer_norm_epsilon"),
            *("relative_attention_num_buckets", "relative_attention_max_distance", "n_positions"),
            # The FFN's own: any non-linearity of transformers, gated or not.
            *("feed_forward_proj", "dense_act_fn", "is_gated_act"),
            # Training only, or for other tasks and programs.
            *("initializer_factor", "dropout_rate", "classifier_dropout", "output_past", "use_cache"),
        }
    ),
)
