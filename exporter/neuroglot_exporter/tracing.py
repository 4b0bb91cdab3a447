"""From a torch model to an ONNX graph without weights.

optimum says what a family's graph takes and gives and makes its modules traceable; the parameters become graph inputs
under their names in the model, so that no weight is copied, transposed or written twice on the way.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TracedGraph:
    """A traced model.

    Attributes:
        model: the graph; its inputs are those of the model, then one for every parameter that it uses.
        parameters: the tensors behind the latter, by name.
    """

    model: onnx.ModelProto
    parameters: dict[str, torch.Tensor]


def describe_causal(model: PreTrainedModel) -> Any:
    """What optimum knows of a causal model whose graph takes past keys and values (of length 0 in a prefill)."""
    import optimum.exporters.onnx.model_configs  # noqa: F401  registers the families
    from optimum.exporters.tasks import TasksManager

    import neuroglot_exporter.onnx_configs  # noqa: F401  registers those that optimum lacks

    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=model.config.model_type, task="text-generation", library_name="transformers"
    )
    return constructor(model.config, use_past=True, use_past_in_inputs=True)


def trace(model: PreTrainedModel, description: Any) -> TracedGraph:
    """Trace a model.

    Args:
        model: in eval mode, on the CPU.
        description: an `optimum.exporters.onnx.OnnxConfig`.
    """
    examples = description.rename_ambiguous_inputs(description.generate_dummy_inputs(framework="pt"))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's own: what they warn of is what the verification measures
        graph_file = Path(folder) / "graph.onnx"
        with description.patch_model_for_export(model):
            inputs = description.ordered_inputs(model)
            _cut_signature(model, examples)
            torch.onnx.export(
                model,
                (examples,),
                f=str(graph_file),
                input_names=list(inputs),
                output_names=list(description.outputs),
                dynamic_axes={**inputs, **description.outputs},
                opset_version=description.DEFAULT_ONNX_OPSET,
                export_params=False,
                do_constant_folding=False,
                dynamo=False,
            )
        traced = onnx.load(graph_file)
    # optimum leaves its own forward on the instance; from here on the model is what transformers made of it.
    model.__dict__.pop("forward")
    del traced.graph.value_info[:]  # rewrites rename tensors; what they were is told anew by whoever reads the graph
    parameters = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    used = [value.name for value in traced.graph.input if value.name not in inputs]
    return TracedGraph(traced, {name: parameters[name].detach() for name in used})


def _cut_signature(model: PreTrainedModel, given: Collection[str]) -> None:
    """Hide the parameters of `forward` behind the last one that is given.

    The tracer passes on the defaults of all that it sees, numbers as tensors: `logits_to_keep=0`, by which transformers
    means all positions, would pick the first one.
    """
    forward: Any = model.forward
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    end = 1 + max(place for place, parameter in enumerate(parameters) if parameter.name in given)
    forward.__signature__ = signature.replace(parameters=parameters[:end])
