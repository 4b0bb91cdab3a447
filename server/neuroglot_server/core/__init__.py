"""The words in which the core is spoken to: what a request asks, what an answer holds, and what can go wrong.

They say what the messages of `neuroglot.v1` say, in Python and numpy, so that any transport can speak to the core.
"""

from neuroglot.interventions import Action, Add, Convert, Deactivate, Override, Scale, Scope
from neuroglot.neurons import NeuronType
from neuroglot.selections import ControlKind
from neuroglot_server.core.description import (
    DECODER,
    ENCODER,
    ComponentDescription,
    Limits,
    ModelDescription,
    Settings,
)
from neuroglot_server.core.errors import InvalidRequest, ModelClosed, ModelNotFound, NotFinite, QueueFull, RequestError
from neuroglot_server.core.request import (
    Analysis,
    ByNeuron,
    ByType,
    Contribution,
    Control,
    Difference,
    Group,
    Intersection,
    Intervention,
    Prediction,
    Row,
    Selection,
    Union,
    Variant,
)
from neuroglot_server.core.result import (
    BASELINE,
    ComponentResult,
    ContributionResult,
    GroupResult,
    RowPrediction,
    RowResult,
    ThresholdResult,
    TokenizedText,
    VariantResult,
)

__all__ = [
    "BASELINE",
    "DECODER",
    "ENCODER",
    "Action",
    "Add",
    "Analysis",
    "ByNeuron",
    "ByType",
    "ComponentDescription",
    "ComponentResult",
    "Contribution",
    "ContributionResult",
    "Control",
    "ControlKind",
    "Convert",
    "Deactivate",
    "Difference",
    "Group",
    "GroupResult",
    "Intersection",
    "Intervention",
    "InvalidRequest",
    "Limits",
    "ModelClosed",
    "ModelDescription",
    "ModelNotFound",
    "NeuronType",
    "NotFinite",
    "Override",
    "Prediction",
    "QueueFull",
    "RequestError",
    "Row",
    "RowPrediction",
    "RowResult",
    "Scale",
    "Scope",
    "Selection",
    "Settings",
    "ThresholdResult",
    "TokenizedText",
    "Union",
    "Variant",
    "VariantResult",
]
