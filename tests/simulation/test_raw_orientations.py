"""Raw head orientations: each on its own grid, moved and turned, with the truth of the motion."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.io import nifti
from chisep.simulation.dataset import SimulateConfig, simulate
from chisep.simulation.motion import brain_centre_mm, random_pose, rotation, turned

RAW = {
    "voxel_mm": 8.0,
    "orientations": 3,
    "raw_orientations": True,
    "simple": True,
    "te_gre_s": (0.005, 0.015),
}


@pytest.fixture(scope="module")
def dataset(coarser_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("raw")
    simulate(SimulateConfig(out=out, labels=(coarser_file,), snr=100, megre_only=False, **RAW), paint_mm=8.0)
    return out


def image(dataset, acq, part="mag"):
    return nifti.load(dataset / f"sub-01/anat/sub-01_acq-{acq}_echo-1_part-{part}_MEGRE.nii.gz")


def motion(dataset, acq):
    path = dataset / f"derivatives/truth/sub-01/anat/sub-01_acq-{acq}_desc-motion_xfm.json"
    return np.array(json.loads(path.read_text())["FirstToThisWorldMm"])


def test_every_orientation_has_its_own_grid_and_no_b0_in_the_sidecar(dataset):
    affines = [image(dataset, f"ori{n}").affine for n in (1, 2, 3)]
    assert not np.allclose(affines[0], affines[1])
    assert not np.allclose(affines[1], affines[2])
    for affine in affines:
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 8.0)
    path = dataset / "sub-01/anat/sub-01_acq-ori2_echo-1_part-phase_MEGRE.json"
    assert "B0DirectionVoxelAxes" not in json.loads(path.read_text())
    assert (dataset / "sub-01/anat/sub-01_acq-ori1_echo-1_MESE.nii.gz").is_file()


def test_the_head_lies_where_the_truth_says(dataset):
    """The first scan, sampled where the motion says, is the other one."""
    from scipy import ndimage

    first = image(dataset, "ori1")
    brain = nifti.load_mask(dataset / "derivatives/truth/sub-01/anat/sub-01_desc-brain_mask.nii.gz").data
    for acq in ("ori2", "ori3"):
        other = image(dataset, acq)
        pull = np.linalg.inv(other.affine) @ motion(dataset, acq) @ first.affine
        there = ndimage.affine_transform(
            other.data, pull[:3, :3], pull[:3, 3], output_shape=first.data.shape, order=3
        )
        by_header = np.linalg.inv(other.affine) @ first.affine
        unmoved = ndimage.affine_transform(
            other.data, by_header[:3, :3], by_header[:3, 3], output_shape=first.data.shape, order=3
        )
        core = ndimage.binary_erosion(brain)
        same = np.corrcoef(there[core], first.data[core])[0, 1]
        assert same > 0.8
        assert same > np.corrcoef(unmoved[core], first.data[core])[0, 1] + 0.05


def test_b0_turns_with_the_head(tissue):
    pose = random_pose(tissue, (30.0, 0.0, 0.0), 8.0, 4.0, 6.0, np.random.default_rng(0))
    turn = pose.transform[:3, :3]
    axes = tissue.grid.matrix()[:3, :3] / np.asarray(tissue.grid.voxel_mm)
    seen = axes @ np.asarray(turned(tissue, turn).grid.b0_direction)
    np.testing.assert_allclose(turn @ seen, [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


def test_the_brain_is_inside_the_field_of_view(tissue):
    for seed in range(4):
        pose = random_pose(tissue, (30.0, 0.0, 0.0), 8.0, 4.0, 6.0, np.random.default_rng(seed))
        seen = pose.seen(tissue.mask.float(), tissue.grid.matrix(), order=1) > 0.5
        edge = torch.ones_like(seen)
        edge[1:-1, 1:-1, 1:-1] = False
        assert not (seen & edge).any()
        assert float(seen.sum()) == pytest.approx(float(tissue.mask.sum()), rel=0.03)


def test_finer_voxels_cover_the_same_field_of_view(tissue):
    pose = random_pose(tissue, (0.0, 30.0, 0.0), 0.0, 0.0, 6.0, np.random.default_rng(1))
    fine = pose.finer(2)
    corner, same = (one.affine @ [-0.5, -0.5, -0.5, 1] for one in (pose, fine))
    np.testing.assert_allclose(same, corner)
    assert fine.shape == tuple(2 * n for n in pose.shape)
    centre = brain_centre_mm(tissue)
    np.testing.assert_allclose(pose.transform @ [*centre, 1], [*centre, 1], atol=1e-9)
    np.testing.assert_allclose(pose.transform[:3, :3], rotation((0.0, 30.0, 0.0)))


@pytest.mark.parametrize("change", [{"orientations": 1}, {"maps_only": True}, {"slab_turn_deg": -1.0}])
def test_options_that_do_not_fit_are_refused(tmp_path, change):
    with pytest.raises(InputError):
        SimulateConfig(out=tmp_path, **(RAW | change))


def test_datasets_without_raw_orientations_keep_their_record(tmp_path):
    from chisep.simulation.subject import Subject

    options = Subject(SimulateConfig(out=tmp_path), 0).record.options
    assert not {"raw_orientations", "slab_turn_deg"} & set(options)
    raw = Subject(SimulateConfig(out=tmp_path, orientations=2, raw_orientations=True), 0).record.options
    assert raw["slab_turn_deg"] == 6.0
