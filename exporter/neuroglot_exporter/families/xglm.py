"""XGLM: a plain FFN, sinusoidal positions, a scaled embedding, a tied head."""

from __future__ import annotations

from neuroglot_exporter.families.family import Family, Ffn

XGLM = Family(
    name="xglm",
    model_types=("xglm",),
    ffns=(
        Ffn(
            component="decoder",
            activation="model.layers.{i}.activation_fn",
            down_projection="model.layers.{i}.fc2",
            depth=lambda config: config.num_layers,
        ),
    ),
    output_embedding="lm_head",
    activation_function=lambda config: config.activation_function,
    max_positions=lambda config: config.max_position_embeddings,
    harmless=frozenset(
        {
            # Geometry, attention, positions and embedding: the FFN is found by its modules, whatever surrounds it.
            *("vocab_size", "d_model", "ffn_dim", "num_layers", "attention_heads", "max_position_embeddings"),
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "scale_embedding"),
            # The FFN's own: any non-linearity of transformers.
            "activation_function",
            # Training only.
            *("init_std", "dropout", "attention_dropout", "activation_dropout", "layerdrop"),
            "use_cache",
        }
    ),
)
