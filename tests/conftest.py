"""Shared fixtures. With CHISEP_TYPECHECK=1 all tests check shapes and types of every chisep call."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one thread each

import pytest

if os.environ.get("CHISEP_TYPECHECK") == "1":
    from jaxtyping import install_import_hook

    _hook = install_import_hook("chisep", "beartype.beartype")

import torch

torch.set_num_threads(1)

from chisep import cli  # noqa: E402
from chisep.io import files, nifti  # noqa: E402
from chisep.simulation.dataset import SimulateConfig, simulate  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Data that only machines of the developers have: real label maps and crops of real scans."""
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that read real data."""
    for item in items:
        if {"shared_labels", "shared_megre", "shared_philips"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("real")


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


@pytest.fixture(scope="session")
def shared_philips() -> Path:
    """Folder with a whole-head gradient echo of two echoes."""
    return _shared("philips-2echo")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> MakeOnce:
    """Write a folder once in a test run: the worker process that asks first writes it, the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = root / "made-once"
    root.mkdir(exist_ok=True)

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def raw_session(make_once) -> Path:
    """A coarse scan with gradient echo and spin echo, SNR 100. Copy it before you change it."""
    return make_once("raw", lambda root: simulate(SimulateConfig(out=root, voxel_mm=4.0, snr=100.0, seed=3)))


@pytest.fixture(scope="session")
def raw_gradient_echo(make_once) -> Path:
    """A coarser gradient-echo scan, three echoes. Copy it before you change it."""
    config = {"voxel_mm": 6.0, "megre_only": True, "te_gre_s": (0.006, 0.012, 0.018)}
    return make_once("raw-megre", lambda root: simulate(SimulateConfig(out=root, **config), paint_mm=4.0))


@pytest.fixture(scope="session")
def processed(raw_session, make_once) -> Path:
    """What the default methods make of this scan; reads.json beside it says how often files were read."""

    def write(folder: Path) -> None:
        reads = {"load": Counter(), "checksum": Counter()}

        def counted(function, counter):
            def call(path, *rest, **options):
                counter[str(path)] += 1
                return function(path, *rest, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nifti, "load", counted(nifti.load, reads["load"]))
            patch.setattr(files, "checksum", counted(files.checksum, reads["checksum"]))
            assert cli.main(["run", str(raw_session), str(folder), "participant"]) == 0
        folder.with_name("reads.json").write_text(json.dumps(reads))

    return make_once("processed", write)
