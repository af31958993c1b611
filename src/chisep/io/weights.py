"""Files of network weights: safetensors with a JSON header. No pickle is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from chisep.errors import InputError
from chisep.io.files import write_bytes
from chisep.io.paths import is_file

FORMAT = "chisep-1"
"""Entry of the metadata that holds the header; its number is that of the header's layout."""
_LARGEST_HEADER_BYTES = 2**24
_BROKEN = (OSError, SafetensorError, ValueError)


def save_weights(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and their header atomically.

    Parameters
    ----------
    path
        `….safetensors`.
    tensors
        By their name in the network.
    header
        JSON object: config, statistics, training data and its licence, metrics.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(header), ensure_ascii=False, sort_keys=True)
    # One entry: safetensors writes several in any order, and equal weights should be equal files.
    return write_bytes(path, save(contiguous, metadata={FORMAT: text}))


def load_header(path: Path) -> dict[str, Any]:
    """Read the header of a file of weights, without the weights.

    Raises
    ------
    InputError
        If the file is missing, no safetensors file, or without the header.
    """
    _check_layout(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT, "null")
        return msgspec.json.decode(text.encode(), type=dict[str, Any])
    except (*_BROKEN, RecursionError) as error:
        raise _unreadable(path, str(error)) from error


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and header; errors as of `load_header`."""
    header = load_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    # A number type that PyTorch does not know is an attribute that it does not have.
    except (*_BROKEN, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise _unreadable(path, str(error)) from error


def _check_layout(path: Path) -> None:
    """Compare the declared length of the header with the file before anything reads it."""
    if not is_file(path):
        raise _unreadable(path, "no such file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            declared = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    if not 2 <= declared <= min(size - 8, _LARGEST_HEADER_BYTES):
        raise _unreadable(path, f"a header of {declared} bytes in a file of {size}")


def _unreadable(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found.splitlines()[0] if found else "nothing that can be read",
        expected="weights that `chisep train` wrote (.safetensors)",
        fix="Check the path; `chisep weights` lists those that come with chisep.",
    )
