"""The probe: checks that a model reproduces the results recorded at export, before it is served and after a hang.

The request takes the path of every group, through plan, scheduler, batches, sessions and kernels, but bypasses the
caches, admission and the callers' limits.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from neuroglot.definitions.probe import compare
from neuroglot.errors import BundleError
from neuroglot.v1 import service_pb2
from neuroglot_server.core import InvalidRequest, Limits, ModelClosed, NotFinite
from neuroglot_server.transport import requests, responses, wire

if TYPE_CHECKING:
    from neuroglot_server.models.model import Model

_logger = logging.getLogger(__name__)

_LIMITS = Limits(tokens_per_row=64, rows_per_group=8, variants_per_group=16)
"""Limits of a probe: the exporter's have 3 rows of up to 15 tokens, and 2 variants per component."""


async def check_probe(model: Model) -> None:
    """Run the probe of a model's bundle and compare the result; a bundle without a probe passes with a warning.

    Raises:
        BundleError: the result differs from the one recorded at export or is not finite, the model fails, or the probe
            is not a valid request.
        ModelClosed: the model was closed meanwhile.
    """
    name, probe = model.description.name, model.probe
    if probe is None:
        _logger.warning("model %s has no probe, so its results cannot be checked: export it again", name)
        return
    began = monotonic()
    try:
        wire.check(service_pb2.AnalyzeGroupRequest(model=name, group=probe.group, analysis=probe.analysis))
        group, analysis = requests.group(probe.group), requests.analysis(probe.analysis)
        result = await model.analyze_uncached(group, analysis, _LIMITS)
    except InvalidRequest as error:
        raise BundleError(f"the probe of {name!r} is damaged ({error}): export the model again") from None
    except NotFinite as error:
        raise BundleError(f"the answer of {name!r} to its probe is not finite: {error}") from None
    except ModelClosed:
        raise
    except Exception as error:
        _logger.exception("model %s cannot answer its probe", name)
        raise BundleError(
            f"{name!r} cannot answer its probe ({type(error).__name__}, the log has the rest): export the model again"
        ) from error
    compared = compare(probe, responses.group_result(result, model.description))
    if compared.differences:
        raise BundleError(
            f"the answer of {name!r} to its probe is not what the export recorded: {compared.summary}; the weights are "
            "not the exported ones, or this machine computes wrong results: export the model again, and if that does "
            "not help, serve it on another device or another version of ONNX Runtime"
        )
    _logger.info(
        "model %s answered its probe in %.0f ms: %d log-probabilities, largest difference %.1e nats",
        name,
        (monotonic() - began) * 1e3,
        compared.log_probabilities,
        compared.largest_difference,
    )
