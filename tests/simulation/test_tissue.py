from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.errors import InputError
from chisep.simulation import anatomy
from chisep.simulation.anatomy import LabelMap
from chisep.simulation.tissue import AIR_PPM, BRAIN_LABELS, REGIONS, TissueConfig, make_tissue

PLAIN = TissueConfig(person_sd=0.0, texture_sd=0.0)


def boxes() -> LabelMap:
    """Nested boxes: air, skull, CSF, cortex, white matter, with a pallidum."""
    labels = np.zeros((36, 40, 44), dtype=np.int16)
    for margin, label in ((4, anatomy.SKULL), (6, anatomy.CSF), (8, 3), (12, 2)):
        labels[margin:-margin, margin:-margin, margin:-margin] = label
    labels[16:20, 16:24, 16:24] = 13
    return LabelMap(labels, np.eye(4), "boxes")


def made(
    head: LabelMap, config: TissueConfig = PLAIN, voxel_mm: float = 1.0, b0_t: float = 3.0, seed: int = 0
):
    return make_tissue(head, np.random.default_rng(seed), config, voxel_mm=(voxel_mm,) * 3, b0_t=b0_t)


def block_mean(volume: np.ndarray, n: int) -> np.ndarray:
    i, j, k = (size // n for size in volume.shape)
    return volume.reshape(i, n, j, n, k, n).mean((1, 3, 5))


def test_every_label_has_one_meaning():
    numbers = [label for region in REGIONS for label in region.labels]
    assert len(numbers) == len(set(numbers))
    names = [name for region in REGIONS for _, name in region.names() if len(region.labels) < 3]
    assert len(names) == len(set(names))


def test_plain_tissue_has_the_values_of_the_table():
    head = boxes()
    tissue = made(head)
    for region in REGIONS:
        here = torch.from_numpy(np.isin(head.labels, region.labels)) & tissue.mask
        if here.any():
            torch.testing.assert_close(
                tissue.chi_pos_ppm[here], torch.full((int(here.sum()),), region.chi_pos_ppb / 1000)
            )
            torch.testing.assert_close(
                tissue.chi_neg_ppm[here], torch.full((int(here.sum()),), region.chi_neg_ppb / 1000)
            )
            torch.testing.assert_close(tissue.r2_hz[here], torch.full((int(here.sum()),), region.r2_hz))
    assert tissue.chi_outside_ppm[0, 0, 0] == pytest.approx(AIR_PPM)


def test_coarser_voxels_are_the_mean_of_the_fine_ones():
    fine, coarse = made(boxes()), made(boxes(), voxel_mm=2.0)
    for name in ("r2_hz", "m0", "t1_s"):
        expected = block_mean(getattr(fine, name).numpy(), 2)
        np.testing.assert_allclose(getattr(coarse, name).numpy(), expected, rtol=1e-5)
    expected = block_mean(fine.chi_pos_ppm.numpy(), 2) * coarse.mask.numpy()
    np.testing.assert_allclose(coarse.chi_pos_ppm.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("voxel_mm", [(1.3, 0.7, 2.9), (1.0, 1.0, 5.0)])
def test_uneven_voxels_keep_the_total_and_the_corner(voxel_mm):
    head = boxes()
    tissue = make_tissue(head, np.random.default_rng(0), PLAIN, voxel_mm=voxel_mm, b0_t=3.0)
    fine = made(head)
    assert float(tissue.m0.double().sum() * np.prod(voxel_mm)) == pytest.approx(
        float(fine.m0.double().sum()), rel=1e-4
    )
    np.testing.assert_allclose(tissue.grid.affine[:3, 3], (np.array(voxel_mm) - 1) / 2)
    np.testing.assert_allclose(np.diag(tissue.grid.affine)[:3], voxel_mm)
    assert all(
        n * new >= old for n, new, old in zip(tissue.grid.shape, voxel_mm, head.labels.shape, strict=True)
    )


def test_labels_of_coarse_voxels_are_those_at_their_centres():
    head = boxes()
    tissue = made(head, voxel_mm=3.0)
    inner = tissue.labels[:12, :13, :14].numpy()
    np.testing.assert_array_equal(inner, head.labels[1::3, 1::3, 1::3][:12, :13, :14])


def test_sources_are_never_negative_and_stay_in_the_mask(tissue):
    for chi in (tissue.chi_pos_ppm, tissue.chi_neg_ppm, tissue.r2_hz, tissue.r2prime_hz, tissue.m0):
        assert chi.dtype == torch.float32
        assert chi.min() >= 0
    for chi in (tissue.chi_pos_ppm, tissue.chi_neg_ppm, tissue.r2prime_hz):
        assert chi[~tissue.mask].abs().max() == 0
    assert tissue.chi_outside_ppm[tissue.mask].abs().max() == 0


def test_r2prime_is_relaxivity_times_sources():
    tissue = made(boxes(), TissueConfig(dr_pos_hz_per_ppm=200.0, dr_neg_hz_per_ppm=50.0))
    torch.testing.assert_close(tissue.r2prime_hz, 200 * tissue.chi_pos_ppm + 50 * tissue.chi_neg_ppm)
    default = made(boxes(), b0_t=7.0)
    torch.testing.assert_close(default.r2prime_hz, 114 * 7 / 3 * (default.chi_pos_ppm + default.chi_neg_ppm))


def test_r2_grows_with_b0_and_sources_do_not():
    low, high = made(boxes()), made(boxes(), b0_t=7.0)
    assert 1.4 < float((high.r2_hz / low.r2_hz)[low.mask].mean()) < 2.0
    torch.testing.assert_close(low.chi_pos_ppm, high.chi_pos_ppm)


def test_texture_has_the_asked_spread_and_is_smooth():
    head = boxes()
    plain = made(head)
    white = (plain.chi_neg_ppm > 0.0285).numpy()
    inner = ndimage.binary_erosion(white)
    ratios, neighbours = [], []
    for seed in range(12):
        rough = made(head, TissueConfig(person_sd=0.0, texture_sd=0.2), seed=seed).chi_neg_ppm.numpy()
        ratio = rough / plain.chi_neg_ppm.clamp(min=1e-3).numpy()
        ratios.append(ratio[white])
        neighbours.append(np.corrcoef(ratio[inner], np.roll(ratio, 1, axis=0)[inner])[0, 1])
    assert np.std(ratios) == pytest.approx(0.2, abs=0.04)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)
    assert min(neighbours) > 0.5, "texture is smooth, not grain"


def test_people_differ_by_the_asked_spread_alike_on_both_sides():
    labels = np.zeros((8, 8, 8), dtype=np.int16)
    labels[2:6, 2:6, 2:6] = 2
    labels[4:6, 2:6, 2:6] = 41
    head = LabelMap(labels, np.eye(4), "cube")
    config = TissueConfig(person_sd=0.2, texture_sd=0.0)
    drawn = [made(head, config, seed=seed).chi_pos_ppm for seed in range(200)]
    left, right = (np.array([float(chi[at, 3, 3]) for chi in drawn]) for at in (2, 5))
    np.testing.assert_array_equal(left, right)
    assert left.std() / 0.017 == pytest.approx(0.2, abs=0.04)
    assert left.mean() == pytest.approx(0.017, rel=0.06)


def test_labels_without_a_meaning_count_as_csf():
    head = boxes()
    head.labels[head.labels == anatomy.CSF] = 9999
    torch.testing.assert_close(made(head).m0, made(boxes()).m0)


def test_susceptibility_of_blood_is_in_the_mask_or_outside_but_never_lost():
    head = boxes()
    head.labels[18, 20, 6] = anatomy.VEIN  # at the rim, outside the mask
    head.labels[18, 20, 30] = anatomy.VEIN  # in the brain
    tissue = made(head)
    assert tissue.chi_outside_ppm[18, 20, 6] == pytest.approx(0.19)
    assert tissue.chi_pos_ppm[18, 20, 30] == pytest.approx(0.19)


def test_a_whole_brain_has_published_means(tissue):
    brain = tissue.mask
    assert 20 < 1000 * float(tissue.chi_pos_ppm[brain].mean()) < 38
    assert 15 < 1000 * float(tissue.chi_neg_ppm[brain].mean()) < 33
    assert 4.5 < float(tissue.r2prime_hz[brain].mean()) < 7.5
    assert 9 < float(tissue.r2_hz[brain].mean()) < 15
    inside = torch.isin(tissue.labels, torch.tensor(BRAIN_LABELS, dtype=torch.int16))
    assert float(brain[inside].float().mean()) > 0.98


@pytest.mark.parametrize("values", [{"person_sd": -0.1}, {"texture_sd": 2.0}])
def test_spreads_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        TissueConfig(**values)


def test_a_relaxivity_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="D_r"):
        TissueConfig(dr_neg_hz_per_ppm=-1.0).relaxivity(3.0)
