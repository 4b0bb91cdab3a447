"""LLaMA, Llama 2 and 3, and what shares their form: a gated FFN, grouped-query attention, rotary positions."""

from __future__ import annotations

from typing import Any

from neuroglot_exporter.families.family import Family, Ffn


def _longest_row(config: Any) -> int:
    """Longest row for which the rotary frequencies of the traced graph are right.

    Two kinds of `rope_scaling` take other frequencies for longer rows: `dynamic` beyond the configured positions,
    `longrope` beyond the original ones.
    """
    scaling = config.rope_scaling or {}
    longest: int = config.max_position_embeddings
    if scaling.get("rope_type") == "longrope":
        longest = getattr(config, "original_max_position_embeddings", longest)
    return longest


LLAMA = Family(
    name="llama",
    model_types=("llama",),
    ffns=(
        Ffn(
            component="decoder",
            activation="model.layers.{i}.mlp.act_fn",
            down_projection="model.layers.{i}.mlp.down_proj",
            depth=lambda config: config.num_hidden_layers,
        ),
    ),
    output_embedding="lm_head",
    activation_function=lambda config: config.hidden_act,
    max_positions=_longest_row,
    harmless=frozenset(
        {
            # Geometry, attention, positions and norms: the FFN is found by its modules, whatever surrounds it.
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
            *("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "rms_norm_eps"),
            *("rope_theta", "rope_scaling", "original_max_position_embeddings"),
            # The FFN's own: any non-linearity of transformers, and biases, which are not part of a value.
            *("hidden_act", "mlp_bias"),
            # Training only, or for other programs; transformers reads none of them.
            *("initializer_range", "attention_dropout", "pretraining_tp", "max_sequence_length", "use_cache"),
            *("is_llama_config", "transformers.js_config", "unsloth_fixed", "_flash_attn_2_enabled"),
        }
    ),
    # transformers ignores it, and so computes something else for a model that was trained with it.
    pinned={"rope_interleaved": (False,)},
)
