"""Limits on the size of a request that hold for every model.

They are checked before a request is parsed, so that a refused request costs next to nothing. Limits that depend on the
model (rows, tokens, variants) are in `core.Limits`; the message `Limits` of the API has both.
"""

from __future__ import annotations

MESSAGE_BYTES = 4 * 2**20
"""Default maximum size of a request: the values of two interventions, and the fields around them."""

FIELDS = 2**13
"""Maximum fields of a request, including those of nested messages; a packed list of numbers is one field."""
DEPTH = 64
"""Maximum nesting depth of messages."""

NAME_BYTES = 1024
"""Maximum size of a name: id, label, name of a model, variant or component, or path of a bundle."""
ANSWER_BYTES = 4096
"""Maximum size of an answer, choice or distractor."""
BYTES_A_TOKEN = 32
"""Maximum bytes of a prompt for each token that a row may have: several times as many as any language needs."""

ROWS = 1024
"""Maximum rows of a group; a model may allow fewer."""
ANSWERS = 64
"""Maximum answers of a row."""
CHOICES = 256
"""Maximum choices of a row."""
TOKEN_IDS = 2**16
"""Maximum token ids of a prompt; a model may allow fewer."""
THRESHOLDS = 32
"""Maximum thresholds of an analysis."""
VARIANTS = 1024
"""Maximum variants of an analysis; a model may allow fewer."""
SELECTIONS = 1024
"""Maximum selections in all variants of a request, including nested ones; also the maximum of interventions."""
SELECTION_DEPTH = 16
"""Maximum nesting depth of selections."""
TYPES = 4
"""Maximum types of a selection: the number of types."""
VALUES = 2**19
"""Maximum values of an intervention: one for each neuron of 32 layers of 16,384."""
LAYERS = 1024
"""Maximum layers in a list of layers."""
NEURONS = 2**16
"""Maximum neurons of a layer in a list of neurons."""
POSITIONS = 2**16
"""Maximum positions in a list of positions."""

TEXTS = 1024
"""Maximum texts of a Tokenize request."""
TEXTS_BYTES = 2**16
"""Maximum size of all texts of a Tokenize request together."""
ENCODED_BYTES = 2**21
"""Maximum bytes that are tokenized for a group: its prompts, each again with its answer and with every choice."""
