"""neuroglot: the feed-forward neurons of multilingual language models, served over gRPC.

This is the light client: no torch, no transformers, no ONNX Runtime. Start with `connect`. `neuroglot.tasks` provides
parallel groups of data sets, `neuroglot.analyses` the paper's analyses of their results.
"""

import importlib
import typing

from neuroglot import tasks as tasks
from neuroglot.client import Client, connect
from neuroglot.errors import (
    AnalysisError,
    BundleError,
    DataError,
    DeadlineError,
    InstallationError,
    InvalidGroupError,
    InvalidRequestError,
    InvalidSelectionError,
    InvalidTargetError,
    ModelChangedError,
    NeuroglotError,
    NotFoundError,
    NotInResultError,
    OverloadedError,
    RunError,
    ServerError,
    UnavailableError,
    Violation,
)
from neuroglot.model import Model, Tokens
from neuroglot.request.groups import Group
from neuroglot.request.interventions import (
    Intervention,
    Scope,
    add,
    convert,
    deactivate,
    override,
    scale,
)
from neuroglot.request.neurons import (
    ALL_SHARED,
    NON_ACTIVATED,
    PARTIAL_SHARED,
    SPECIFIC,
    NeuronSet,
    NeuronType,
)
from neuroglot.request.options import (
    ContributionOptions,
    EffectiveScoreOptions,
    Priority,
    ScoreTarget,
)
from neuroglot.request.selections import (
    ControlKind,
    Uploaded,
    control,
    difference,
    intersection,
    top_contribution,
    union,
)
from neuroglot.results.results import (
    CapturedLayer,
    ComponentResult,
    GeneratedToken,
    GroupFailure,
    GroupResult,
    RowPrediction,
)
from neuroglot.results.type_maps import Contribution, EffectiveScores, Leading, Types

if typing.TYPE_CHECKING:
    from neuroglot import analyses as analyses

__all__ = [
    "ALL_SHARED",
    "NON_ACTIVATED",
    "PARTIAL_SHARED",
    "SPECIFIC",
    "AnalysisError",
    "BundleError",
    "CapturedLayer",
    "Client",
    "ComponentResult",
    "Contribution",
    "ContributionOptions",
    "ControlKind",
    "DataError",
    "DeadlineError",
    "EffectiveScoreOptions",
    "EffectiveScores",
    "GeneratedToken",
    "Group",
    "GroupFailure",
    "GroupResult",
    "InstallationError",
    "Intervention",
    "InvalidGroupError",
    "InvalidRequestError",
    "InvalidSelectionError",
    "InvalidTargetError",
    "Leading",
    "Model",
    "ModelChangedError",
    "NeuroglotError",
    "NeuronSet",
    "NeuronType",
    "NotFoundError",
    "NotInResultError",
    "OverloadedError",
    "Priority",
    "RowPrediction",
    "RunError",
    "Scope",
    "ScoreTarget",
    "ServerError",
    "Tokens",
    "Types",
    "UnavailableError",
    "Uploaded",
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
    "top_contribution",
    "union",
]


def __getattr__(name: str) -> object:
    """`neuroglot.analyses` is imported when it is first asked for: it needs an extra, and takes a second."""
    if name == "analyses":
        return importlib.import_module("neuroglot.analyses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
