"""Datasets: any sidecar, any name, any layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisep.errors import InputError
from chisep.io import bids, discovery, nifti
from chisep.pipeline.check import check_dataset
from tests.hostile import datasets
from tests.hostile.conftest import cases
from tests.hostile.limits import CASES, ends_well

IMAGE = nifti.Image(np.ones((3, 3, 3), np.float32), datasets.AFFINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return datasets.write_dataset(tmp_path_factory.mktemp("whole") / "raw")


def discover(root, target):
    """Say what would run, and name the outputs of what would."""
    CASES[target] += 1
    checks = ends_well(lambda: check_dataset(root))
    found = ends_well(lambda: discovery.discover(root))
    for one in [] if isinstance(found, InputError) else found:
        if one.session is not None:
            path = one.session.output(root / "out", "Chimap", desc="total")
            assert path.resolve().is_relative_to((root / "out").resolve())
            assert path.name.isprintable()
            assert path.name.isascii()
            # What comes from a sidecar can be written to another.
            json.dumps([one.session.megre.phase_units, one.session.megre.b0_direction], allow_nan=False)
            str(one.session.megre.phase_units).encode()
            nifti.grid_of(IMAGE, one.session.megre.b0_direction)
    if not isinstance(checks, InputError):
        assert all(check.name.isprintable() for check in checks)
        json.dumps([check.as_dict() for check in checks], allow_nan=False).encode()
    return found


@cases(120, 700)
@given(
    content=datasets.sidecars(),
    name=st.sampled_from(
        [
            "sub-01/anat/sub-01_echo-2_part-phase_MEGRE.json",
            "sub-01/anat/sub-01_echo-1_part-mag_MEGRE.json",
            "sub-01/sub-01_MEGRE.json",
            "MEGRE.json",
            "part-phase_MEGRE.json",
            "dataset_description.json",
            "participants.json",
        ]
    ),
)
def test_sidecars(whole, tmp_path, content, name):
    root = datasets.renewed(tmp_path / "raw", whole)
    (root / name).write_bytes(content)
    discover(root, "sidecars")


@cases(60, 400)
@given(
    subject=datasets.labels,
    entity=st.sampled_from(["ses", "acq", "run", "echo", "part", "rec"]),
    label=datasets.labels,
)
def test_names(whole, tmp_path, subject, entity, label):
    """Images of these names are there; or asked for by these names."""
    CASES["labels asked for"] += 1
    root = datasets.renewed(tmp_path / "raw", whole)
    ends_well(lambda: check_dataset(root, discovery.Selection((subject,))))
    folder, file = f"sub-{subject}", f"sub-{subject}_{entity}-{label}_echo-1_part-mag_MEGRE.nii.gz"
    if datasets.usable_name(folder) and datasets.usable_name(file):
        (root / folder / "anat").mkdir(parents=True, exist_ok=True)
        (root / folder / "anat" / file).write_bytes(b"")
        discover(root, "names of files")


def images_of(root):
    return sorted((root / "sub-01" / "anat").glob("*.nii.gz"))


def linked_in_a_circle(root):
    (root / "sub-01" / "anat" / "again").symlink_to(root)
    (root / "sub-02").symlink_to(root / "sub-02")


def outside(root):
    """As git-annex has it: images are links to a store. Reading them is right."""
    for image in images_of(root):
        store = root.parent / f"{image.name}.stored"
        image.replace(store)
        image.symlink_to(store)


def pipe_as_sidecar(root):
    file = bids.sidecar_of(images_of(root)[0])
    file.unlink()
    os.mkfifo(file)


def pipe_as_image(root):
    images_of(root)[0].unlink()
    os.mkfifo(images_of(root)[0].with_name("sub-01_echo-1_part-mag_MEGRE.nii.gz"))


def pipe_as_description(root):
    (root / "dataset_description.json").unlink()
    os.mkfifo(root / "dataset_description.json")


def folder_as_image(root):
    image = images_of(root)[0]
    image.unlink()
    image.mkdir()


def file_as_folder(root):
    (root / "sub-02").write_text("")
    (root / "sub-03").mkdir()
    (root / "sub-03" / "anat").write_text("")


def enormous_sidecar(root):
    with bids.sidecar_of(images_of(root)[0]).open("wb") as file:
        file.truncate(2**36)


def device_as_sidecar(root):
    file = bids.sidecar_of(images_of(root)[0])
    file.unlink()
    file.symlink_to("/dev/zero")


def dangling(root):
    image = images_of(root)[0]
    image.unlink()
    image.symlink_to(root / "nowhere")


def nothing(root):
    for image in images_of(root):
        image.write_bytes(b"")


def many_participants(root):
    for number in range(2, 300):
        (root / f"sub-{number:03d}" / "anat").mkdir(parents=True)


def two_cases(root):
    for name in ("Sub-01", "SUB-01", "sub-01 "):
        (root / name / "anat").mkdir(parents=True)


def no_dataset(root):
    datasets.shutil.rmtree(root)
    root.write_text("a file")


def no_folder(root):
    datasets.shutil.rmtree(root)


LAYOUTS = {
    layout.__name__: layout
    for layout in (
        *(linked_in_a_circle, outside, pipe_as_sidecar, pipe_as_image, pipe_as_description, folder_as_image),
        *(file_as_folder, enormous_sidecar, device_as_sidecar, dangling, nothing, many_participants),
        *(two_cases, no_dataset, no_folder),
    )
}
GOOD = {
    "linked_in_a_circle",
    "outside",
    "pipe_as_description",
    "file_as_folder",
    "many_participants",
    "two_cases",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(whole, tmp_path, name):
    root = datasets.renewed(tmp_path / "raw", whole)
    LAYOUTS[name](root)
    found = discover(root, "layouts")
    usable = not isinstance(found, InputError) and any(one.session is not None for one in found)
    images = usable and all(check.ok for check in check_dataset(root, discovery.Selection(("01",))))
    assert bool(images) == (name in GOOD)
    if name in GOOD:
        nifti.load(next(one.session for one in found if one.session is not None).megre.magnitude[0])


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "loop"])
def test_roots_that_cannot_be_looked_up(tmp_path, text):
    CASES["layouts"] += 1
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "no such directory" in str(ends_well(lambda: check_dataset(tmp_path / text)))
    assert "no such file" in str(ends_well(lambda: nifti.load(tmp_path / text)))
