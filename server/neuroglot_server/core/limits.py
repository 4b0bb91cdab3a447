"""How large a request may be, whatever the model.

All of it is looked at before anything is made of a request, so that what is refused costs next to nothing. What depends
on the model (rows, tokens, variants) is in `core.Limits`; the contract's `Limits` has both.
"""

from __future__ import annotations

MESSAGE_BYTES = 4 * 2**20
"""Longest request, by default: the values of two interventions, and what is around them."""

FIELDS = 2**13
"""Most fields of a request, those of messages inside it included; a packed list of numbers is one field."""
DEPTH = 64
"""How deep messages may be inside of each other."""

NAME_BYTES = 1024
"""Longest name: an id, a label, a model's, a variant's or a component's, the path of a bundle."""
ANSWER_BYTES = 4096
"""Longest answer, choice or distractor."""
BYTES_A_TOKEN = 32
"""A prompt may have so many bytes for each token that a row may have: several times as many as any language needs."""

ROWS = 1024
"""Most rows of a group, where a model allows them."""
ANSWERS = 64
"""Most answers of a row."""
CHOICES = 256
"""Most choices of a row."""
TOKEN_IDS = 2**16
"""Most token ids of a prompt, where a model allows them."""
THRESHOLDS = 32
"""Most thresholds of an analysis."""
VARIANTS = 1024
"""Most variants of an analysis, where a model allows them."""
SELECTIONS = 1024
"""Most selections in all variants of a request, those inside others included; so many interventions, too."""
SELECTION_DEPTH = 16
"""How deep selections may be inside of each other."""
TYPES = 4
"""Most types of a selection: there are no more."""
VALUES = 2**19
"""Most values of an intervention: one for each neuron of 32 layers of 16,384."""
LAYERS = 1024
"""Most layers that are listed one by one."""
NEURONS = 2**16
"""Most neurons of a layer that are listed one by one."""
POSITIONS = 2**16
"""Most positions that are listed one by one."""

TEXTS = 1024
"""Most texts that are tokenized at once."""
TEXTS_BYTES = 2**16
"""Most bytes of all of them together, which are also those of one."""
ENCODED_BYTES = 2**21
"""Most bytes that are tokenized for a group: of its prompts, each again with its answer and with every choice."""
