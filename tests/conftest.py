"""Shared fixtures; shapes and types of every chisep call are checked in all tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one thread each

import pytest
from jaxtyping import install_import_hook

_hook = install_import_hook("chisep", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Data that only machines of the developers have: real label maps and crops of real scans."""


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs real data that is not part of the package: {name}")
    return folder


@pytest.fixture(scope="session")
def shared_labels() -> Path:
    """Folder with label maps of real heads."""
    return _shared("labels")


@pytest.fixture(scope="session")
def shared_megre() -> Path:
    """Folder with crops of real multi-echo gradient-echo scans."""
    return _shared("megre")
