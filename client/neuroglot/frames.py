"""Results as pandas tables: one row for each thing measured, one column for each variable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from neuroglot.errors import InstallationError

if TYPE_CHECKING:
    import pandas as pd


def frame(columns: Mapping[str, object]) -> pd.DataFrame:
    """Make a table of columns of equal length.

    Raises:
        InstallationError: pandas is not installed.
    """
    try:
        import pandas as pd  # here: the light client works without
    except ImportError as error:
        raise InstallationError(f"a table needs pandas ({error}): pip install 'neuroglot[analysis]'") from None
    return pd.DataFrame(dict(columns))
