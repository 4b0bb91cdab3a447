"""mT0 and mT5: T5 with a gated GELU and an untied head."""

from __future__ import annotations

from dataclasses import replace

from neuroglot_exporter.families.t5 import T5

MT0 = replace(T5, name="mt0", model_types=("mt5",))
