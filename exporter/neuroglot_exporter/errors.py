"""Errors of the exporter, in addition to those of `neuroglot.errors`.

NeuroglotError
└── ExportError             a checkpoint that cannot be exported
    ├── CheckpointError     no such checkpoint, an unknown family, or an attribute that could change the FFN
    ├── RewriteError        the traced graph does not match the family
    └── VerificationError   the exported graph does not compute what transformers computes
"""

from __future__ import annotations

from neuroglot.errors import NeuroglotError


class ExportError(NeuroglotError):
    """A checkpoint that cannot be exported."""


class CheckpointError(ExportError):
    """No such checkpoint, one of an unknown family, or one with an attribute that could change the FFN."""


class RewriteError(ExportError):
    """The traced graph does not match the family: the message names the node and what was expected."""


class VerificationError(ExportError):
    """The exported graph does not compute what transformers computes."""
