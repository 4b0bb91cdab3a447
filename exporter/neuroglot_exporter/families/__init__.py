"""The families that can be exported, one small file each.

To add one: write `families/NAME.py` (where activation and down projection are, which attributes of its config are
known), add it to `FAMILIES`, and where optimum does not know it to `onnx_configs.py`. For the tests, add a random
config to `tests/checkpoints.py`, its modules to `tests/exporter/reference.py`, and odd geometries to
`tests/exporter/test_against_transformers.py`: the rest of the tests then runs on it. The graphs of encoder-decoders are
traced by `t5_graphs.py` and tested by `tests/exporter/test_encoder_decoder.py`; one of another build needs its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuroglot_exporter.errors import CheckpointError
from neuroglot_exporter.families.bloom import BLOOM
from neuroglot_exporter.families.family import Family
from neuroglot_exporter.families.llama import LLAMA
from neuroglot_exporter.families.mt0 import MT0
from neuroglot_exporter.families.t5 import T5
from neuroglot_exporter.families.xglm import XGLM

FAMILIES: tuple[Family, ...] = (BLOOM, LLAMA, XGLM, MT0, T5)

_GENERIC = frozenset(
    {
        *("_name_or_path", "_model_name_or_path", "_commit_hash", "architectures", "torch_dtype"),
        *("transformers_version", "unk_token_id"),
    }
)


def family_of(raw_config: Mapping[str, Any], source: str) -> Family:
    """The family that a checkpoint's config.json names.

    Raises:
        CheckpointError: no family here has this `model_type`; the message names those that there are.
    """
    model_type = raw_config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(model_type for family in FAMILIES for model_type in family.model_types))
    raise CheckpointError(f"{source} is of model type {model_type!r}; neuroglot exports {known}")


def check_attributes(raw_config: Mapping[str, Any], family: Family, generic: frozenset[str], source: str) -> None:
    """Refuse a config with an attribute that could change the FFN.

    Args:
        raw_config: config.json as it stands.
        family: the family it belongs to.
        generic: attributes that every config of transformers has.
        source: for the message.

    Raises:
        CheckpointError: an attribute that is not known, or a known one with a value that is not supported.
    """
    for name, value in sorted(raw_config.items()):
        allowed = family.pinned.get(name)
        if allowed is not None:
            if value not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise CheckpointError(
                    f"{source}: its config has {name} = {value!r}, which changes the FFN of {family.name}; "
                    f"supported is {expected}"
                )
        elif name not in family.harmless and name not in generic and name not in _GENERIC:
            raise CheckpointError(
                f"{source}: its config has {name} = {value!r}, which neuroglot does not know and which could change "
                f"the FFN; if it cannot, add it to `harmless` in neuroglot_exporter/families/{family.name}.py"
            )
