"""What optimum does not know: the inputs and outputs of families that it has no `OnnxConfig` for.

Importing this module registers them with optimum.
"""

from __future__ import annotations

from optimum.exporters.onnx.config import TextDecoderWithPositionIdsOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig

_register = TasksManager.create_register("onnx")


@_register("xglm", "text-generation", "text-generation-with-past")
class XglmOnnxConfig(TextDecoderWithPositionIdsOnnxConfig):  # type: ignore[misc]  # optimum is untyped
    """XGLM as a causal model whose positions are given: padded rows count theirs over real tokens."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig.with_args(
        hidden_size="d_model", num_layers="num_layers", num_attention_heads="attention_heads"
    )
