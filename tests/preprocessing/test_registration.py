"""Rigid motion between scans of different contrast, and resampling through scanner coordinates."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from chisep.errors import InputError
from chisep.io import discovery, nifti
from chisep.preprocessing.registration import RegistrationConfig, register
from chisep.preprocessing.resampling import coverage, resample_to
from chisep.simulation.dataset import SimulateConfig, simulate
from chisep.types import Grid


def affine_of(voxel_mm, origin_mm, angles_deg=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() @ np.diag(voxel_mm)
    affine[:3, 3] = origin_mm
    return affine


def scanner_mm(shape, affine):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def ramps(shape, affine):
    """Two volumes that are linear in scanner mm, which linear interpolation reproduces exactly."""
    x, y, z = np.moveaxis(scanner_mm(shape, affine), -1, 0)
    return np.stack([2 * x - y + 3 * z + 50, 0.5 * x + y - z + 9])


def test_the_same_grid_gives_the_same_values():
    affine = affine_of((0.9, 0.9, 2.2), (-31.7, 12.3, 5.1), (10, -20, 30))
    data = torch.rand(2, 9, 10, 11)
    moved = resample_to(data, affine, Grid((9, 10, 11), (0.9, 0.9, 2.2), affine=affine))
    torch.testing.assert_close(moved, data, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_image_is_found_at_its_place_on_an_oblique_grid(dtype):
    source = affine_of((2.0, 2.0, 3.0), (-40.0, -42.0, -45.0))
    target = affine_of((1.1, 0.9, 1.3), (-10.0, -8.0, -12.0), (12, -7, 25))
    data = torch.from_numpy(ramps((40, 42, 30), source)).to(dtype)
    grid = Grid((14, 16, 12), (1.1, 0.9, 1.3), affine=target)
    moved = resample_to(data, source, grid)
    assert moved.dtype == dtype
    wanted = torch.from_numpy(ramps(grid.shape, target)).to(dtype)
    torch.testing.assert_close(moved, wanted, atol=1e-3, rtol=1e-5)


def test_zero_where_the_source_has_no_voxel():
    data = torch.ones(1, 4, 4, 4)
    moved = resample_to(data, affine_of((1, 1, 1), (0, 0, 2)), Grid((4, 4, 4), (1.0, 1.0, 1.0)))
    assert (moved[..., :2] == 0).all()
    assert (moved[..., 2:] == 1).all()


def test_volumes_apart_are_refused():
    with pytest.raises(InputError, match=r"spin echo.*does not overlap"):
        resample_to(
            torch.ones(1, 4, 4, 4),
            affine_of((1, 1, 1), (100, 0, 0)),
            Grid((4, 4, 4), (1.0, 1.0, 1.0)),
            source="spin echo",
        )


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_motion_is_undone(interpolation):
    """What lies at T(x) in the data is found at x."""
    source, target = affine_of((2.0, 2.0, 2.0), (-40, -40, -40)), affine_of((1.5, 1.5, 1.5), (-10, -10, -10))
    motion = affine_of((1, 1, 1), (3.0, -2.0, 4.0), (5, -8, 3))
    data = torch.from_numpy(ramps((40, 40, 40), source))
    grid = Grid((12, 12, 12), (1.5, 1.5, 1.5), affine=target)
    moved = resample_to(data, source, grid, transform=motion, interpolation=interpolation)
    wanted = torch.from_numpy(ramps(grid.shape, motion @ target))
    torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=1e-5)


def test_cubic_interpolation_keeps_more_of_fine_structure_than_linear():
    rng = np.random.default_rng(0)
    wave = rng.uniform(0, 2 * np.pi, 3)
    grid = Grid((30, 30, 30), (1.0, 1.0, 1.0))
    motion = affine_of((1, 1, 1), (0.5, 0.4, 0.45))

    def image(affine):
        x, y, z = np.moveaxis(scanner_mm(grid.shape, affine), -1, 0)
        return 2 + np.sin(1.2 * x + wave[0]) * np.cos(1.1 * y + wave[1]) * np.sin(z + wave[2])

    data = torch.from_numpy(image(np.eye(4)))[None]
    wanted = image(motion)[4:-4, 4:-4, 4:-4]

    def error(interpolation):
        moved = resample_to(data, np.eye(4), grid, transform=motion, interpolation=interpolation)
        return np.abs(moved[0, 4:-4, 4:-4, 4:-4].numpy() - wanted).max()

    assert error("cubic") < 0.3 * error("linear")


def test_magnitudes_do_not_become_negative_by_overshoot():
    data = torch.zeros(1, 12, 12, 12)
    data[:, 6:] = 1.0
    moved = resample_to(
        data, np.eye(4), Grid((12, 12, 12), (1.0,) * 3), transform=affine_of((1,) * 3, (0.4, 0, 0))
    )
    assert moved.min() == 0


def test_coverage_is_where_there_are_voxels():
    grid = Grid((4, 4, 8), (1.0, 1.0, 1.0))
    assert coverage((4, 4, 3), np.eye(4), grid).sum(2).unique().tolist() == [3]
    shifted = coverage((4, 4, 3), np.eye(4), grid, transform=affine_of((1, 1, 1), (0, 0, -2)))
    assert shifted[0, 0].tolist() == [False, False, True, True, True, False, False, False]


# ---- registration ------------------------------------------------------------------------------------------

SLAB_MM = 0.5
"""A quarter of a voxel, at the far end of a head of which only a slab of voxels of up to 4 mm was seen."""


class Session:
    """Gradient and spin echoes of a simulated session between whose scans the head moved."""

    def __init__(self, root):
        (session,) = discovery.find_sessions(root)
        self.gre = self.stacked(session.megre.magnitude)
        self.se = self.stacked(session.mese.magnitude)
        self.affine = nifti.load(session.megre.magnitude[0]).affine
        truth = root / "derivatives" / "truth" / "sub-01" / "anat"
        self.mask = torch.from_numpy(nifti.load(truth / "sub-01_desc-brain_mask.nii.gz").data > 0)
        motion = json.loads((truth / "sub-01_desc-motion_xfm.json").read_text())
        self.motion = np.array(motion["MegreToMeseWorldMm"])

    @staticmethod
    def stacked(paths):
        return torch.from_numpy(np.stack([nifti.load(path).data for path in paths]))

    def error(self, found, motion=None):
        """Largest distance in the brain, in mm, and angle in degrees, between found and true motion."""
        true = self.motion if motion is None else motion
        points = self.mask.nonzero().numpy() @ self.affine[:3, :3].T + self.affine[:3, 3]
        off = np.linalg.inv(true) @ found.fixed_to_moving_mm
        distance = np.linalg.norm(points @ off[:3, :3].T + off[:3, 3] - points, axis=1).max()
        return distance, np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude())

    def check(self, found, motion=None, *, mm=0.3, deg=0.3):
        assert found.found
        distance, angle = self.error(found, motion)
        assert distance <= mm
        assert angle <= deg


@pytest.fixture(scope="module")
def session(make_once):
    """Three echoes of each scan, tissue painted on voxels of 2 mm."""
    options = {"voxel_mm": 2.0, "snr": 50.0, "motion_mm": 3.0, "motion_deg": 3.0, "seed": 4}
    options |= {"te_gre_s": (0.005, 0.014, 0.023), "te_se_s": (0.02, 0.04, 0.06)}
    return Session(
        make_once("moved", lambda root: simulate(SimulateConfig(out=root, **options), paint_mm=2.0))
    )


@pytest.fixture(scope="module")
def found(session):
    return register(session.se, session.affine, session.gre, session.affine, mask=session.mask)


def test_simulated_motion_is_found(session, found):
    session.check(found)
    assert found.agreement > found.agreement_before + 0.1
    assert found.contrast > 0.5
    assert found.warnings == ()
    turn = Rotation.from_matrix(session.motion[:3, :3]).magnitude()
    assert found.rotation_deg == pytest.approx(np.degrees(turn), abs=0.3)
    centre = np.array(found.centre_mm)
    shift = session.motion[:3, :3] @ centre + session.motion[:3, 3] - centre
    np.testing.assert_allclose(found.translation_mm, shift, atol=0.3)
    assert found.displacement_mm >= np.linalg.norm(found.translation_mm)


def test_the_spin_echo_lands_where_the_gradient_echo_is(session, found):
    there = register(
        resample_to(
            session.se,
            session.affine,
            Grid(tuple(session.mask.shape), (2.0,) * 3, affine=session.affine),
            transform=found.fixed_to_moving_mm,
        ),
        session.affine,
        session.gre,
        session.affine,
        mask=session.mask,
    )
    session.check(there, np.eye(4))


def test_thick_slices_of_a_slab(session):
    """2 × 2 × 4 mm, and only the middle of the head."""
    first, last = session.se.shape[3] // 3, 3 * session.se.shape[3] // 4
    slab = session.se[..., first : first + 2 * ((last - first) // 2)]
    thick = slab.unflatten(3, (-1, 2)).mean(-1)
    affine = session.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (first + 0.5)
    affine[:3, 2] *= 2
    found = register(thick, affine, session.gre, session.affine, mask=session.mask)
    session.check(found, mm=SLAB_MM)


def test_a_slab_of_the_gradient_echo_and_an_oblique_spin_echo_of_other_voxels(session):
    first, last = session.mask.shape[2] // 3, 3 * session.mask.shape[2] // 4
    affine = session.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    turned = session.affine @ affine_of((1.25, 1.1, 1.4), (3, 2, 4), (8, -12, 5))
    shape = (80, 100, 64)
    oblique = resample_to(session.se, session.affine, Grid(shape, (2.5, 2.2, 2.8), affine=turned))
    gre, mask = session.gre[..., first:last], session.mask[..., first:last]
    session.check(register(oblique, turned, gre, affine, mask=mask), mm=SLAB_MM)


def test_a_large_motion_is_found(session):
    more = affine_of((1, 1, 1), (6, -7, 5), (8, -5, 6))
    found = register(session.se, more @ session.affine, session.gre, session.affine, mask=session.mask)
    session.check(found, more @ session.motion)


def test_no_motion_is_found_between_scans_without(session):
    back = np.linalg.inv(session.motion) @ session.affine
    found = register(session.se, back, session.gre, session.affine, mask=session.mask)
    session.check(found, np.eye(4))


def test_scale_and_threads_do_not_matter(session):
    config = RegistrationConfig(points=10_000)
    inputs = (session.affine, session.gre * 1e-6, session.affine)
    one = register(session.se, *inputs, mask=session.mask, config=config)
    torch.set_num_threads(2)
    try:
        two = register(session.se, *inputs, mask=session.mask, config=config)
    finally:
        torch.set_num_threads(1)
    np.testing.assert_array_equal(one.fixed_to_moving_mm, two.fixed_to_moving_mm)
    large = register(
        session.se * 1e5, session.affine, session.gre, session.affine, mask=session.mask, config=config
    )
    np.testing.assert_allclose(one.fixed_to_moving_mm, large.fixed_to_moving_mm, atol=1e-3)


def test_lengths_scale_with_a_small_head(session):
    small = np.diag([0.1, 0.1, 0.1, 1.0])
    config = RegistrationConfig(points=10_000)
    usual, scaled = (
        register(
            session.se,
            by @ session.affine,
            session.gre,
            by @ session.affine,
            mask=session.mask,
            config=config,
            length_scale=scale,
        )
        for by, scale in ((np.eye(4), 1.0), (small, 0.1))
    )
    expected = small @ usual.fixed_to_moving_mm @ np.linalg.inv(small)
    np.testing.assert_allclose(scaled.fixed_to_moving_mm, expected, atol=1e-3)
    assert scaled.displacement_mm == pytest.approx(0.1 * usual.displacement_mm, rel=0.01)
    assert scaled.contrast == pytest.approx(usual.contrast, abs=1e-3)


class TestFails:
    """A registration that fails warns and keeps the headers' alignment."""

    def kept(self, session, moving, affine, said, **options):
        found = register(
            moving,
            affine,
            session.gre,
            session.affine,
            mask=session.mask,
            config=RegistrationConfig(points=2000, **options),
        )
        assert re.search(said, found.warnings[0])
        assert not found.found
        np.testing.assert_array_equal(found.fixed_to_moving_mm, np.eye(4))

    def test_scans_apart(self, session):
        self.kept(session, session.se, affine_of((2, 2, 2), (900, 0, 0)), "too little of the brain")

    def test_a_motion_beyond_the_limits(self, session):
        self.kept(session, session.se, session.affine, "mm and", max_shift_mm=0.5, max_rotation_deg=0.1)

    def test_scans_that_share_no_contrast(self, session):
        """An affine of MNI, in which agreement grows by what is smooth in space alone."""
        normalised = affine_of((1.12, 1.08, 1.15), (0, 0, 0), (28, 0, 6)) @ session.affine
        found = register(session.se, normalised, session.gre, session.affine, mask=session.mask)
        assert not found.found
        assert found.contrast < 0.15
        np.testing.assert_array_equal(found.fixed_to_moving_mm, np.eye(4))

    def test_scans_that_share_little_contrast(self, session):
        """Voxels that are 15 % too large, which no rigid motion mends."""
        large = np.diag([1.15, 1.15, 1.15, 1.0]) @ session.affine
        found = register(session.se, large, session.gre, session.affine, mask=session.mask)
        assert found.contrast < 0.3
        assert "share" in found.warnings[0]

    def test_an_empty_mask(self, session):
        with pytest.raises(InputError, match="empty mask"):
            register(
                session.se, session.affine, session.gre, session.affine, mask=torch.zeros_like(session.mask)
            )

    @pytest.mark.parametrize(
        "options", [{"smoothing_mm": (0.0,)}, {"points": 3}, {"max_shift_mm": -1.0}, {"rim_mm": -1.0}]
    )
    def test_options_are_checked(self, options):
        with pytest.raises(InputError, match="registration"):
            RegistrationConfig(**options)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_mask_chooses_voxels_and_changes_none(interpolation):
    generator = torch.Generator().manual_seed(0)
    data = torch.rand((2, 12, 11, 6), generator=generator)
    source = affine_of((1.1, 1.2, 2.3), (1, -2, 0))
    motion = np.eye(4)
    motion[:2, :2] = [[math.cos(0.1), -math.sin(0.1)], [math.sin(0.1), math.cos(0.1)]]
    grid = Grid((14, 10, 13), (1.0, 1.0, 1.1))
    mask = torch.rand(grid.shape, generator=generator) < 0.3
    everywhere = coverage((12, 11, 6), source, grid, transform=motion)
    covered = coverage((12, 11, 6), source, grid, transform=motion, mask=mask)
    assert torch.equal(covered, everywhere & mask)
    whole = resample_to(data, source, grid, transform=motion, interpolation=interpolation)
    part = resample_to(data, source, grid, transform=motion, interpolation=interpolation, mask=covered)
    assert torch.equal(part, whole * covered)
