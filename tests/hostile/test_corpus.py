"""Small files that were once a fault of chisep or are a classic one of its kind, read again every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chisep.errors import InputError
from chisep.io import bids, discovery
from chisep.io.weights import load_weights
from chisep.networks.weights import load
from tests.hostile import datasets, test_datasets, test_nifti
from tests.hostile.limits import CASES, ends_well
from tests.untrained import save_untrained

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.iterdir() if path.suffix != ".md")


def test_the_corpus_is_small_and_explained():
    assert sum(path.stat().st_size for path in FILES) < 200_000
    told = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in FILES if f"`{path.name}`" not in told]


@pytest.mark.parametrize("file", [f for f in FILES if ".nii" in f.name], ids=lambda f: f.name)
def test_images(file, tmp_path):
    """All are refused, but those whose name says that they are good."""
    copy = Path(shutil.copy(file, tmp_path))
    test_nifti.read(copy, "corpus", honest_bytes=2**24)
    refused = isinstance(ends_well(lambda: test_nifti.nifti.load(copy), honest_bytes=2**24), InputError)
    assert refused != file.name.startswith("good")


@pytest.mark.parametrize("file", [f for f in FILES if f.suffix == ".json"], ids=lambda f: f.name)
def test_sidecars(file, tmp_path):
    root = datasets.write_dataset(tmp_path / "raw")
    beside = bids.sidecar_of(bids.raw_path(root, "01", "MEGRE", echo=2, part="phase"))
    shutil.copy(file, beside)
    found = test_datasets.discover(root, "corpus")
    assert all(one.session is None for one in found) != file.name.startswith("good")
    # As the description of the dataset it does not matter.
    shutil.copy(file, datasets.write_dataset(tmp_path / "other") / "dataset_description.json")
    assert test_datasets.discover(tmp_path / "other", "corpus")[0].session is not None


@pytest.mark.parametrize("file", [f for f in FILES if f.suffix == ".safetensors"], ids=lambda f: f.name)
def test_weights(file, tmp_path):
    CASES["corpus"] += 1
    load(save_untrained(tmp_path, "qsmnet"))  # what PyTorch imports at its first use is not counted
    ends_well(lambda: load_weights(file))
    assert isinstance(ends_well(lambda: load(file)), InputError)


@pytest.mark.parametrize("name", json.loads((CORPUS / "names.txt").read_text(encoding="utf-8")))
def test_names(name, tmp_path):
    """Labels that must not become part of a path."""
    CASES["corpus"] += 1
    root = datasets.write_dataset(tmp_path / "raw")
    found = ends_well(lambda: discovery.discover(root, discovery.Selection((name,))))
    assert isinstance(found, InputError)
    assert "Traceback" not in str(found)
