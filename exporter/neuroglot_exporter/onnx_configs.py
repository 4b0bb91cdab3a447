"""An `OnnxConfig`, with inputs and outputs, for families that optimum has none for.

Importing this module registers them with optimum.
"""

from __future__ import annotations

from optimum.exporters.onnx.config import TextDecoderWithPositionIdsOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig

_register = TasksManager.create_register("onnx")


@_register("xglm", "text-generation", "text-generation-with-past")
class XglmOnnxConfig(TextDecoderWithPositionIdsOnnxConfig):  # type: ignore[misc]  # optimum is untyped
    """XGLM as a causal model with `position_ids`, which count real tokens only in padded rows."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig.with_args(
        hidden_size="d_model", num_layers="num_layers", num_attention_heads="attention_heads"
    )
