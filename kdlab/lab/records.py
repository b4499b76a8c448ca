"""Results that travel: what a record may hold, as JSON and in words."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

MIME = "application/vnd.kdlab.record+json"


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; NaN and infinities become None.

    Raises:
        ValueError: a type that has no such form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, torch.Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, pd.DataFrame):
        named = any(name is not None for name in value.index.names)
        return [plain(row) for row in (value.reset_index() if named else value).to_dict("records")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping | pd.Series):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise ValueError(
        f"cannot record a {type(value).__name__}; expected numbers, texts, lists, mappings, "
        "arrays, tensors, DataFrames or dataclasses"
    )


def readable(key: str, item: Any) -> str:
    """Return one entry of a record on a short line."""
    if isinstance(item, float):
        text = f"{item:.4g}"
    elif isinstance(item, list):
        text = f"{len(item)} rows" if item and isinstance(item[0], dict) else f"{len(item)} values"
    else:
        text = str(item)
    return text if key == "value" else f"{key} = {text}"
