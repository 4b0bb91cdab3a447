"""neuroglot: the feed-forward neurons of multilingual language models, served over gRPC.

This is the light client: no torch, no transformers, no ONNX Runtime. Start with `connect`.
"""

from neuroglot.client import Client, GroupFailure, Model, Tokens, connect
from neuroglot.errors import (
    AnalysisError,
    BundleError,
    DeadlineError,
    InstallationError,
    InvalidGroupError,
    InvalidRequestError,
    InvalidSelectionError,
    InvalidTargetError,
    NeuroglotError,
    NotFoundError,
    NotInResultError,
    OverloadedError,
    RunError,
    ServerError,
    UnavailableError,
    Violation,
)
from neuroglot.groups import Group
from neuroglot.interventions import Intervention, Scope, add, convert, deactivate, override, scale
from neuroglot.neurons import ALL_SHARED, NON_ACTIVATED, PARTIAL_SHARED, SPECIFIC, NeuronSet, NeuronType
from neuroglot.results import ComponentResult, GroupResult, RowPrediction
from neuroglot.selections import ControlKind, control, difference, intersection, union
from neuroglot.type_maps import Contribution, Types

__all__ = [
    "ALL_SHARED",
    "NON_ACTIVATED",
    "PARTIAL_SHARED",
    "SPECIFIC",
    "AnalysisError",
    "BundleError",
    "Client",
    "ComponentResult",
    "Contribution",
    "ControlKind",
    "DeadlineError",
    "Group",
    "GroupFailure",
    "GroupResult",
    "InstallationError",
    "Intervention",
    "InvalidGroupError",
    "InvalidRequestError",
    "InvalidSelectionError",
    "InvalidTargetError",
    "Model",
    "NeuroglotError",
    "NeuronSet",
    "NeuronType",
    "NotFoundError",
    "NotInResultError",
    "OverloadedError",
    "RowPrediction",
    "RunError",
    "Scope",
    "ServerError",
    "Tokens",
    "Types",
    "UnavailableError",
    "Violation",
    "add",
    "connect",
    "control",
    "convert",
    "deactivate",
    "difference",
    "intersection",
    "override",
    "scale",
    "union",
]
