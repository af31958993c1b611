"""The independent bench: its physics against closed forms, its statistics, one small call of the command."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import nibabel
import numpy as np
import pytest
from scipy import ndimage, stats

from chisep import cli
from chisep.errors import InputError
from chisep.experiments.independent import forward
from chisep.experiments.independent.conditions import CONDITIONS, Condition, measure
from chisep.experiments.independent.evaluation import evaluated
from chisep.experiments.independent.heads import CLASSES, NAMES, WHITE, read_head
from chisep.experiments.independent.lesions import add_lesions
from chisep.experiments.independent.qsm_forward_world import qsm_forward_field
from chisep.experiments.independent.scans import Place, phantom_of
from chisep.experiments.independent.statistics import by_head, interval, paired, summarised
from chisep.experiments.independent.worlds import World, atlas_like, piecewise_constant
from chisep.types import Sources
from tests.untrained import save_untrained

TILTED = (0.0, 0.6, 0.8)
SHAPE = (40, 44, 36)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Write a small brain of ellipsoids: cortex around white matter, ventricles, and deep grey matter."""
    x, y, z = (axis - (n - 1) / 2 for axis, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    radius = np.sqrt((x / 17) ** 2 + (y / 19) ** 2 + (z / 15) ** 2)
    volume = np.select([radius < 0.8, radius < 1], [2, 3], 0)
    volume[volume == 0] = 507
    for number, centre in (
        (4, (3, -8, 2)),
        (11, (5, 4, 3)),
        (12, (9, 4, 0)),
        (13, (6, -1, -1)),
        (10, (4, -5, -3)),
    ):
        volume[
            ((np.abs(x) - centre[0]) / 3) ** 2 + ((y - centre[1]) / 3) ** 2 + ((z - centre[2]) / 3) ** 2 < 1
        ] = number
    left = {2: 41, 3: 42, 4: 43, 11: 50, 12: 51, 13: 52, 10: 49}
    for number, other in left.items():
        volume[(volume == number) & (x > 0)] = other
    path = tmp_path_factory.mktemp("labels") / "head-21_dseg.nii.gz"
    # From left to right, so that reading must flip the first axis.
    nibabel.save(nibabel.Nifti1Image(volume[::-1].astype(np.int16), np.diag([-1.0, 1, 1, 1])), path)
    return path


@pytest.fixture(scope="module")
def phantom(labels):
    head = read_head(labels, np.random.default_rng(0))
    return piecewise_constant(head, np.random.default_rng(1))


def world(**options) -> World:
    return World("made", "for tests", piecewise_constant, 120.0, 80.0, **options)


def test_the_field_of_a_sphere_is_that_of_a_dipole():
    x, y, z = np.indices((48, 48, 48)) - 23.5
    b_axis = TILTED[1] * y + TILTED[2] * z
    r = np.sqrt(x**2 + y**2 + z**2)
    fine = (
        sum(
            (np.sqrt((x + a) ** 2 + (y + b) ** 2 + (z + c) ** 2) < 8)
            for a in (-0.25, 0.25)
            for b in (-0.25, 0.25)
            for c in (-0.25, 0.25)
        )
        / 8
    )
    field = forward.dipole_field(fine.astype(np.float32), TILTED)
    true = 8**3 / (3 * r**3) * (3 * b_axis**2 / r**2 - 1)
    shell = (r > 11) & (r < 20)
    assert np.abs(field - true)[shell].max() < 0.01
    assert np.abs(field[r < 5]).max() < 0.03


def test_the_field_of_a_tensor_along_and_across_b0():
    rng = np.random.default_rng(0)
    chi = rng.standard_normal((16, 18, 20)).astype(np.float32)
    delta = np.full_like(chi, 0.3)
    none = np.zeros_like(chi)
    for b0 in ((0.0, 0.0, 1.0), TILTED):
        along = np.stack([np.full_like(chi, axis) for axis in b0])
        across = np.stack([np.ones_like(chi), none, none])
        isotropic = forward.dipole_field(chi, b0)
        np.testing.assert_allclose(forward.tensor_field(chi, none, along, b0), isotropic, atol=1e-5)
        for fibre, factor in ((along, 2 / 3), (across, -1 / 3)):
            expected = forward.dipole_field(chi + factor * delta, b0)
            np.testing.assert_allclose(forward.tensor_field(chi, delta, fibre, b0), expected, atol=1e-5)


def test_a_structured_error_has_its_bands_and_is_strongest_near_the_cone():
    error = forward.structured_error_ppm((64, 64, 64), 6.0, (0.0, 0.0, 1.0), np.random.default_rng(0))
    assert error.std() == pytest.approx(0.006, rel=1e-4)
    smooth = [error, *(ndimage.gaussian_filter(error, s, mode="wrap") for s in forward.BANDS_VOXEL[:2])]
    fine, next_band = (1000 * (a - b).std() for a, b in pairwise(smooth))
    assert fine / next_band == pytest.approx(forward.BANDS_PPB[0] / forward.BANDS_PPB[1], rel=0.1)
    k = np.fft.fftfreq(64)
    square = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2
    square[0, 0, 0] = 1
    cos2, power = k[None, None, :] ** 2 / square, np.abs(np.fft.fftn(error)) ** 2
    middle = (square > 0.05) & (square < 0.2)
    cone, equator = (power[middle & x].mean() for x in ((cos2 > 0.3) & (cos2 < 0.4), cos2 < 0.02))
    assert cone / power[middle].mean() == pytest.approx(1.45, abs=0.35)
    assert equator < 0.45 * cone


def test_noise_of_field_and_rates_is_that_of_their_sigma():
    rng = np.random.default_rng(0)
    rate = rng.uniform(5, 40, (30, 30, 30)).astype(np.float32)
    magnitude = np.full(rate.shape, 0.8)
    error, sigma = forward.field_noise_ppm(magnitude, rate, 3.0, 0.02, rng)
    assert (error / sigma).std() == pytest.approx(1, abs=0.03)
    assert abs((error / sigma).mean()) < 0.02
    fitted, sigma = forward.rate_fit_hz(magnitude, rate, forward.GRE_TE_S, 0.01, rng)
    assert ((fitted - rate) / sigma).std() == pytest.approx(1, abs=0.03)


def test_a_shift_by_a_whole_voxel_moves_by_a_voxel():
    volume = np.random.default_rng(0).standard_normal((8, 9, 10)).astype(np.float32)
    np.testing.assert_allclose(
        forward.shifted(volume, (1, 0, -2)), np.roll(volume, (1, -2), (0, 2)), atol=1e-5
    )


def test_a_head_is_read_in_ras_with_its_classes(labels, phantom):
    head = phantom.head
    stored = np.asarray(nibabel.load(labels).dataobj)[::-1]
    assert (head.labels == 11).sum() == (stored == 11).sum()
    left, right = (ndimage.center_of_mass(head.labels == number)[0] for number in (11, 50))
    assert left < right
    assert (head.labels[head.mask] > 0).all()
    for number, name in enumerate(NAMES, 1):
        assert set(np.unique(head.labels[head.classes == number])) <= set(CLASSES[name])
    np.testing.assert_allclose((head.fibre**2).sum(0)[head.mask], 1, atol=1e-3)


def test_a_box_cuts_the_brain(labels):
    head = read_head(labels, np.random.default_rng(0), (20, 22, 18))
    assert head.mask.shape == (20, 22, 18)
    assert head.mask.mean() > 0.9


def test_pieces_are_constant_and_their_edges_sharp(phantom):
    values = phantom.chi_pos_ppm[phantom.head.labels == 11]
    assert values.min() == values.max() > 0


@pytest.mark.parametrize("name", ["sin2", "varying"])
def test_d_r_that_methods_get_is_the_mean_of_the_true_one(phantom, name):
    condition = Condition(name, snr=None, oriented=name == "sin2", relaxivity_sd=0.2 * (name == "varying"))
    measured = measure(phantom, world(), condition, np.random.default_rng(0))
    if name == "sin2":
        assert measured.dr_neg_hz_per_ppm == pytest.approx(80)
    mean = measured.dr_pos_hz_per_ppm * phantom.chi_pos_ppm + measured.dr_neg_hz_per_ppm * phantom.chi_neg_ppm
    assert measured.r2prime_hz.sum() == pytest.approx(float(mean.sum()), rel=1e-3)
    assert np.abs(measured.r2prime_hz - mean)[phantom.mask].mean() > 0.05 * mean[phantom.mask].mean()


def test_conditions_change_one_thing(phantom):
    made = {
        name: measure(phantom, world(), condition, np.random.default_rng(0))
        for name, condition in CONDITIONS.items()
    }
    plain, mask, white = made["snr50"], phantom.mask, phantom.head.classes == WHITE
    clean = made["clean"]
    exact = 120 * phantom.chi_pos_ppm + 80 * phantom.chi_neg_ppm
    np.testing.assert_allclose(clean.r2prime_hz, exact, atol=1e-3)
    chi = phantom.chi_pos_ppm - phantom.chi_neg_ppm
    np.testing.assert_allclose(
        clean.field_ppm, forward.dipole_field(chi, forward.B0_DIRECTION) * mask, atol=1e-6
    )
    shift = made["shift"].field_ppm - plain.field_ppm
    assert np.abs(shift[~white]).max() < 1e-7
    assert -0.006 <= shift.min() < -0.003
    np.testing.assert_array_equal(made["shift"].r2prime_hz, plain.r2prime_hz)
    structured = made["structured"].field_ppm - plain.field_ppm
    assert structured[mask].std() == pytest.approx(0.006, rel=0.1)
    assert np.median(made["structured"].field_sigma_ppm[mask]) == pytest.approx(0.006, rel=0.05)
    assert np.abs(made["anisotropic"].field_ppm - plain.field_ppm)[mask].std() > 2e-4
    registered = made["registration"].r2prime_hz - plain.r2prime_hz
    assert np.abs(registered)[mask].max() > 0.5
    np.testing.assert_array_equal(made["registration"].field_ppm, plain.field_ppm)
    ratio = np.median(made["snr20"].field_sigma_ppm[mask] / plain.field_sigma_ppm[mask])
    assert ratio == pytest.approx(2.5, rel=0.01)


def test_lesions_are_apart_and_have_the_assigned_source():
    rng = np.random.default_rng(0)
    tissue = np.ones((70, 70, 70), bool)
    tissue[:4] = False
    base = np.full(tissue.shape, 0.03, np.float32)
    pos, neg, lesions = add_lesions(base, base, tissue, rng)
    assert len(lesions) >= 8
    assert {x.shape for x in lesions} == {"ellipsoid", "blob"}
    assert sum(x.inside.astype(int) for x in lesions).max() == 1
    for lesion in lesions:
        own = pos if lesion.source == "chi_pos" else neg
        assert 1000 * own[lesion.inside].mean() == pytest.approx(lesion.assigned_ppb, rel=1e-4)
    assert (np.concatenate([pos[~tissue], neg[~tissue]]) == np.float32(0.03)).all()


def test_the_truth_has_no_error(phantom):
    import torch

    truth = Sources(torch.from_numpy(phantom.chi_pos_ppm), torch.from_numpy(phantom.chi_neg_ppm))
    found = evaluated(truth, phantom)
    for source in ("chi_pos", "chi_neg", "chi"):
        assert found["scores"][source]["nrmse_percent"] == 0
        assert found["regions"][source]["slope"] == pytest.approx(1)


def test_an_interval_is_that_of_student():
    values = [3.0, 4.0, 6.0, 9.0]
    found = interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert interval([2.0])["low"] is None
    assert interval([2.0, None])["mean"] is None
    assert paired({"a": 3.0, "b": 5.0}, {"b": 1.0, "a": 2.0, "c": 9.0})["mean"] == 2.5


def test_noise_draws_of_a_head_count_once():
    cells = [{"head": "a", "x": 1.0}, {"head": "a", "x": 3.0}, {"head": "b", "x": 5.0}]
    assert by_head(cells, lambda cell: cell["x"]) == {"a": 2.0, "b": 5.0}


def test_slope_and_leak_of_lesions_are_counted_per_head():
    def cell(head, slope):
        lesions = [
            {"source": "chi_pos", "assigned_ppb": a, "predicted_ppb": slope * a, "leak_ppb": 0.02 * a}
            for a in (100.0, 200.0, 400.0)
        ]
        score = dict.fromkeys(("nrmse_percent", "psnr_in_mask_db", "xsim", "hfen_percent"), 1.0)
        return {
            "row": "unrolled",
            "world": "lesions",
            "condition": "snr50",
            "head": head,
            "draw": 0,
            "scores": {"chi_pos": score},
            "coverage": {},
            "lesions": lesions,
            "regions": {"chi_pos": {"slope": 1.0}},
        }

    found = summarised([cell("a", 0.9), cell("b", 1.1)], "unrolled")["Lesions"]["lesions"]["snr50"][
        "unrolled"
    ]
    assert found["chi_pos"]["slope"]["mean"] == pytest.approx(1.0)
    assert found["chi_pos"]["slope"]["heads"] == 2
    assert found["chi_pos"]["leak_percent"]["mean"] == pytest.approx(2.0)
    assert found["chi_pos"]["lesions"] == 6


def test_the_atlas_like_world_is_smooth(phantom):
    smooth = atlas_like(phantom.head, np.random.default_rng(0))
    inside = ndimage.binary_erosion(phantom.mask)
    steps = [np.abs(np.diff(x.chi_pos_ppm, axis=0))[inside[1:]] for x in (smooth, phantom)]
    assert np.percentile(steps[0], 99) < 0.5 * np.percentile(steps[1], 99)
    assert np.median(steps[0]) > np.median(steps[1])


def test_a_phantom_is_read_as_it_was_written(labels, tmp_path):
    place = Place("piecewise", labels, None, 1)
    first, second = phantom_of(place, tmp_path), phantom_of(place, tmp_path)
    np.testing.assert_array_equal(first.chi_neg_ppm, second.chi_neg_ppm)
    np.testing.assert_array_equal(first.head.labels, second.head.labels)
    other = phantom_of(Place("piecewise", labels, None, 2), tmp_path)
    assert not np.array_equal(first.chi_neg_ppm, other.chi_neg_ppm)


def test_qsm_forward_makes_its_world_and_the_field_agrees(labels, tmp_path):
    found = phantom_of(Place("qsm-forward", labels, None, 1), tmp_path)
    chi = found.chi_pos_ppm - found.chi_neg_ppm
    # With the margins that qsm-forward gets: both kernels are then sampled alike.
    margins = [(n // 2, n // 2) for n in chi.shape]
    inner = tuple(slice(low, low + n) for (low, _), n in zip(margins, chi.shape, strict=True))
    own = forward.dipole_field(np.pad(chi, margins), forward.B0_DIRECTION)[inner]
    difference = (found.field_ppm - own)[found.mask]
    assert difference.std() < 1e-3 * own[found.mask].std()
    filled = np.where(found.mask, chi, 0)[8:-8, 8:-8, 8:-8]
    offset = qsm_forward_field(filled) - forward.dipole_field(filled, forward.B0_DIRECTION)
    assert abs(offset.mean()) < 0.02 * own[found.mask].std()
    white = found.head.classes == WHITE
    grey, pallidum = (found.head.classes == 1 + NAMES.index(x) for x in ("grey matter", "pallidum"))
    assert found.chi_neg_ppm[white].mean() > 1.3 * found.chi_neg_ppm[grey].mean()
    assert found.chi_pos_ppm[pallidum].mean() > 2 * found.chi_pos_ppm[grey].mean()
    assert found.chi_pos_ppm.min() >= 0 <= found.chi_neg_ppm.min()


def test_without_qsm_forward_the_command_says_what_to_install(labels, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "qsm_forward", None)
    options = ["--labels", str(labels), "--worlds", "qsm-forward"]
    assert cli.main(["reproduce", "independent", str(tmp_path), *options]) != 0
    assert "chisep[bench]" in " ".join(capsys.readouterr().err.split())


def test_the_command_writes_page_figure_and_table_and_resumes(labels, tmp_path, capsys):
    weights = save_untrained(tmp_path, "unrolled")
    call = [
        "reproduce", "independent", str(tmp_path / "out"), "--labels", str(labels),
        "--worlds", "piecewise", "--conditions", "snr50", "structured-no-sigma",
        "--rows", "closed-form", "tikhonov", "--draws", "2",
        "--weights", f"mine={weights}", "--reference", "closed-form",
    ]  # fmt: skip
    assert cli.main(call) == 0
    found = json.loads((tmp_path / "out" / "independent.json").read_text(encoding="utf-8"))
    assert len(found["Cells"]) == 2 * 2 * 3
    scores = found["Scores"]["piecewise"]["snr50"]
    assert set(scores) == {"closed-form", "tikhonov", "mine"}
    assert 0 < scores["closed-form"]["chi_pos"]["nrmse_percent"]["mean"] < 100
    assert scores["closed-form"]["chi"]["psnr_in_mask_db"]["mean"] > 20
    assert set(found["Coverage"]["piecewise"]["snr50"]) == {"mine"}
    assert set(found["Differences"]["piecewise"]["snr50"]) == {"tikhonov", "mine"}
    assert (tmp_path / "out" / "independent.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "out" / "independent.md").read_text(encoding="utf-8")
    assert "## piecewise constant" in text
    assert "| mine |" in text
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(cells) == 12
    assert cli.main(call) == 0
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert (tmp_path / "out" / "independent.md").read_text(encoding="utf-8") == text


def test_networks_are_compared_alone(labels, tmp_path):
    """Without refinement the estimate is the network's own; the page says so."""
    weights = save_untrained(tmp_path, "unrolled")
    call = [
        "reproduce", "independent", str(tmp_path), "--labels", str(labels), "--worlds", "piecewise",
        "--conditions", "snr50", "--rows", "closed-form",
        "--weights", f"mine={weights}", "--reference", "mine",
    ]  # fmt: skip
    errors = []
    for more in ([], ["--no-refinement"]):
        assert cli.main([*call, *more]) == 0
        found = json.loads((tmp_path / "independent.json").read_text(encoding="utf-8"))
        errors.append(found["Scores"]["piecewise"]["snr50"]["mine"]["chi_pos"]["nrmse_percent"]["mean"])
    assert errors[0] < 0.8 * errors[1]
    assert "not refined" in (tmp_path / "independent.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--worlds", "mars"], "some of: qsm-forward"),
        (["--rows", "iterative"], "--reference"),
        (["--weights", "unrolled=x"], "NAME=FILE"),
        (["--weights", "mine=missing.safetensors"], "missing.safetensors"),
        (["--draws", "0"], "1 or more"),
    ],
)
def test_wrong_options_are_named(options, said, labels, tmp_path, capsys):
    call = ["reproduce", "independent", str(tmp_path / "out"), "--labels", str(labels), *options]
    assert cli.main(call) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "cells").exists()


def test_a_label_map_that_is_none_is_refused(tmp_path):
    path = tmp_path / "noise.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((20, 20, 20), 507, np.int16), np.eye(4)), path)
    with pytest.raises(InputError, match="FreeSurfer"):
        read_head(path, np.random.default_rng(0))
    nibabel.save(nibabel.Nifti1Image(np.full((20, 20, 20), 2, np.int16), np.diag([2.0, 2, 2, 1])), path)
    with pytest.raises(InputError, match="1 mm"):
        read_head(path, np.random.default_rng(0))
