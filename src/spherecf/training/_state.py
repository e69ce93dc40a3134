"""The state of a fit between two epochs, written whole after each: what kill -9 cannot take away."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spherecf._files import write_atomically
from spherecf.errors import FileFormatError

STATE_FILE = "fit-state.pt"


def identity_of(facts: Mapping[str, Any]) -> str:
    """Hash of the settings and data that a state belongs to."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save_state(folder: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Write the state, whole or not at all.

    Raises:
        StorageError: the disk is full; the state of the epoch before is intact.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, **state}, buffer)
    write_atomically(folder / STATE_FILE, lambda stream: stream.write(buffer.getbuffer()))


def load_state(folder: Path, identity: str) -> dict[str, Any] | None:
    """The saved state of this very fit, or None where there is none or it belongs to other settings or data.

    Raises:
        FileFormatError: the file is damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load: pickle and zip errors of many classes
        raise FileFormatError(
            path, f"damaged: {str(error).splitlines()[0]}.", "Delete it to start the fit afresh."
        ) from error
    return state if state.get("identity") == identity else None
