"""Checkpoints that are whole or absent, and that refuse to continue another run."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.files import atomic_write
from kdlab.training.identity import differences

FORMAT = 2  # another number, whenever a checkpoint or an identity holds other things than before


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state`` atomically: killed at any moment, the file is the old one or the new one."""
    buffer = io.BytesIO()  # torch.save calls a full disk a RuntimeError; Python, an OSError
    torch.save({"format": FORMAT, **state}, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: str | os.PathLike[str], identity: dict[str, Any]) -> dict[str, Any]:
    """Return the state stored at ``path``, if it belongs to the run that ``identity`` describes.

    Nothing is unpickled but tensors and plain values.

    Raises:
        ValueError: the file is damaged, another version of kdlab wrote it, or it is another run's;
            the message says which settings differ and what to do.
    """
    file = Path(path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        stored = dict(state["identity"])
    except Exception as error:
        raise ValueError(
            f"checkpoint: {file.name} is damaged or no checkpoint of kdlab "
            f"({type(error).__name__}); delete it to start anew"
        ) from error
    if state.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint: {file.name} was written by another version of kdlab (format "
            f"{state.get('format', 1)}, expected {FORMAT}); go on with that version, or delete the "
            "file to start anew"
        )
    names = [name for name in {**stored, **identity} if identity]
    differing = [name for name in names if stored.get(name) != identity.get(name)]
    if differing:
        listing = "; ".join(
            f"{name}: {differences(stored.get(name), identity.get(name))}" for name in differing
        )
        raise ValueError(
            f"checkpoint: {file.name} belongs to another run ({listing}); "
            "use the same settings to continue, or another path to start anew"
        )
    return state


def check_storable(states: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError that names the entry of a state that a checkpoint could not give back.

    Checkpoints are read without unpickling objects: only tensors and plain values come back.
    """
    for part, state in states.items():
        for name, value in state.items():
            plain = type(value) in (Tensor, nn.Parameter) and not value.is_nested
            if plain and value.layout == torch.strided:
                continue
            buffer = io.BytesIO()
            try:
                torch.save(value, buffer)
                buffer.seek(0)
                torch.load(buffer, weights_only=True)
                if isinstance(value, Tensor) and value.is_nested:
                    raise TypeError("load_state_dict of PyTorch cannot take nested tensors")
            except Exception as error:
                layout = f" of layout {value.layout}" if isinstance(value, Tensor) else ""
                raise ValueError(
                    f"checkpoint: got a {type(value).__name__}{layout} as {name!r} in the state of "
                    f"the {part}, expected tensors and plain values that can be read without "
                    "unpickling objects; return such from get_extra_state, or leave checkpoint=None"
                ) from error


def check_writable(path: Path) -> None:
    """Raise ValueError before anything is trained if ``path`` cannot be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"checkpoint: {path} cannot be written ({error.strerror}); choose a file in a folder "
            "that can be"
        ) from error


def try_to_save(path: str | os.PathLike[str], state: dict[str, Any]) -> bool:
    """Save, or warn and go on when the disk refuses: training must not be lost to a full disk."""
    try:
        save_checkpoint(path, state)
    except OSError as error:
        warnings.warn(
            f"checkpoint: {path} could not be written ({error.strerror}); training goes on without "
            "it. Free some space or choose a writable folder.",
            stacklevel=3,
        )
        return False
    return True
