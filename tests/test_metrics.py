from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qsm_ci import qsm_eval
from scipy import stats
from skimage.metrics import structural_similarity

from chisep import metrics


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    shape = (18, 20, 16)
    truth = rng.normal(0.02, 0.05, shape).astype(np.float32)
    predicted = (0.8 * truth + rng.normal(0.005, 0.02, shape)).astype(np.float32)
    distance = np.linalg.norm(np.indices(shape) - np.array([9, 10, 8])[:, None, None, None], axis=0)
    return predicted, truth, distance < 7


class TestAgainstOtherPrograms:
    def test_qsm_ci(self, maps):
        predicted, truth, mask = maps
        assert metrics.xsim(*maps) == pytest.approx(qsm_eval.xsim(predicted, truth, mask), rel=1e-9)
        assert metrics.hfen_percent(*maps) == pytest.approx(qsm_eval.hfen(predicted, truth, mask), rel=1e-9)
        assert metrics.pearson_r(*maps) == pytest.approx(
            qsm_eval.correlation(predicted, truth, mask), abs=1e-6
        )
        demeaned, _ = qsm_eval.nrmse_challenge(predicted, truth, mask)
        assert metrics.nrmse_demeaned_percent(*maps) == pytest.approx(demeaned, rel=1e-5)

    def test_mspe(self, maps):
        predicted, truth, mask = maps
        labels = np.where(mask, 1 + np.arange(truth.shape[0])[:, None, None] // 6, 0)
        expected = qsm_eval.roi_mspe(predicted, truth, labels, [1, 2, 3], mask, min_vox=1, min_mean=0)
        assert metrics.mspe_percent(predicted, truth, labels) == pytest.approx(expected, rel=1e-5)

    def test_ssim_of_scikit_image_on_255_levels(self, maps):
        predicted, truth, mask = maps
        low = min(predicted[mask].min(), truth[mask].min())
        high = max(predicted[mask].max(), truth[mask].max())
        grey = [np.where(mask, 255 * (m - low) / (high - low), 0) for m in (predicted, truth)]
        _, local = structural_similarity(*grey, data_range=255, full=True, win_size=7)
        assert metrics.ssim(*maps) == pytest.approx(local[mask].mean(), rel=1e-5)

    def test_slope_of_scipy(self):
        assigned = np.array([50.0, 100, 200, 400, 700])
        predicted = 0.9 * assigned + np.array([3.0, -2, 4, 0, -3])
        line, fit = (
            metrics.lesion_slope(list(assigned), list(predicted)),
            stats.linregress(assigned, predicted),
        )
        assert (line.slope, line.intercept) == pytest.approx((fit.slope, fit.intercept))
        half = stats.t.ppf(0.975, 3) * fit.stderr
        assert (line.slope_low, line.slope_high) == pytest.approx((fit.slope - half, fit.slope + half))


def test_nrmse_and_psnr_by_hand():
    truth = np.zeros((4, 4, 4), np.float32)
    mask = np.zeros((4, 4, 4), bool)
    mask[:2] = True
    truth[:2] = 0.1
    predicted = truth + 0.01
    assert metrics.nrmse_percent(predicted, truth, mask) == pytest.approx(10, rel=1e-5)
    assert metrics.psnr_in_mask_db(predicted, truth, mask) == pytest.approx(40, abs=1e-4)
    assert metrics.psnr_db(predicted, truth, mask) == pytest.approx(40 + 10 * math.log10(2), abs=1e-4)


@given(st.floats(0.5, 2.0), st.integers(0, 10**6))
def test_perfect_and_scaled_maps(scale, seed):
    truth = np.random.default_rng(seed).normal(0.03, 0.05, (9, 8, 10))
    mask = truth > -0.05
    scaled = scale * truth
    assert metrics.nrmse_percent(scaled, truth, mask) == pytest.approx(100 * abs(scale - 1), abs=1e-9)
    assert metrics.pearson_r(scaled, truth, mask) == pytest.approx(1)
    perfect = metrics.evaluate(truth, truth, mask)
    assert (perfect["ssim"], perfect["xsim"], perfect["nrmse_percent"]) == pytest.approx((1, 1, 0))
    assert perfect["psnr_db"] == math.inf


def test_what_is_outside_the_mask_does_not_count(maps):
    predicted, truth, mask = maps
    other = np.where(mask, predicted, 7).astype(np.float32)
    for name in (
        "nrmse_percent",
        "nrmse_demeaned_percent",
        "psnr_db",
        "psnr_in_mask_db",
        "ssim",
        "pearson_r",
    ):
        metric = getattr(metrics, name)
        assert metric(other, truth, mask) == metric(predicted, truth, mask), name


def test_undefined_is_nan_not_an_error(maps):
    _, truth, mask = maps
    zero = np.zeros_like(truth)
    scores = metrics.evaluate(truth, zero, mask)
    assert math.isnan(scores["nrmse_percent"])
    assert math.isnan(scores["pearson_r"])
    assert math.isnan(metrics.mspe_percent(truth, zero, mask.astype(int)))


def test_region_statistics(maps):
    predicted, _, mask = maps
    labels = np.where(mask, 1 + (np.arange(16) // 4), 0)
    found = metrics.roi_statistics(predicted, labels)
    assert sorted(found) == [label for label in (1, 2, 3, 4) if (labels == label).any()]
    for label, region in found.items():
        inside = predicted[labels == label]
        assert region.voxels == inside.size
        assert (region.mean, region.sd, region.median) == pytest.approx(
            (inside.mean(), inside.std(), np.median(inside)), rel=1e-4
        )
