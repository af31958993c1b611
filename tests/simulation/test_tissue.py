from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.errors import InputError
from chisep.simulation import anatomy, labelmap
from chisep.simulation.anatomy import LabelMap
from chisep.simulation.iron import ATLAS_AGE_YEARS, iron_of_age
from chisep.simulation.labelmap import Veins
from chisep.simulation.tissue import TissueConfig, make_tissue
from chisep.simulation.tissue_properties import AIR_PPM, BRAIN_LABELS, REGIONS

PLAIN = TissueConfig(person_sd=0.0, texture_sd=0.0, opposed_sd=0.0, layered=False, refine_mm=float("inf"))


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
    tissue = made(boxes(), replace(PLAIN, dr_pos_hz_per_ppm=200.0, dr_neg_hz_per_ppm=50.0))
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
    white = head.labels == 2
    inner = ndimage.binary_erosion(white)
    logs, neighbours = [], []
    for seed in range(12):
        rough = made(head, replace(PLAIN, texture_sd=0.2), seed=seed).chi_pos_ppm.numpy()
        ratio = rough / plain.chi_pos_ppm.clamp(min=1e-3).numpy()
        assert np.mean(ratio[white]) == pytest.approx(1.0, rel=1e-3)
        logs.append(np.log(ratio[white]))
        neighbours.append(np.corrcoef(ratio[inner], np.roll(ratio, 1, axis=0)[inner])[0, 1])
    assert np.std(logs) == pytest.approx(0.2, abs=0.03)
    assert min(neighbours) > 0.5, "texture is smooth, not grain"


def test_texture_is_shared_by_both_sources_and_opposed_texture_is_not():
    white = boxes().labels == 2
    for config, low, high in (
        (replace(PLAIN, texture_sd=0.3), 0.99, 1.0),
        (replace(PLAIN, opposed_sd=0.3), -1.0, -0.99),
    ):
        rough = made(boxes(), config)
        logs = [torch.log(chi[torch.from_numpy(white)]) for chi in (rough.chi_pos_ppm, rough.chi_neg_ppm)]
        assert low <= float(torch.corrcoef(torch.stack(logs))[0, 1]) <= high + 1e-6


def test_layers_leave_the_mean_of_a_region():
    head = boxes()
    plain, layered = made(head), made(head, replace(PLAIN, layered=True))
    cortex = torch.from_numpy(head.labels == 3)
    for name in ("chi_pos_ppm", "chi_neg_ppm"):
        flat, deep = getattr(plain, name)[cortex], getattr(layered, name)[cortex]
        assert float(deep.mean()) == pytest.approx(float(flat.mean()), rel=1e-4)
        assert float(deep.std()) > 0.25 * float(deep.mean())


@pytest.mark.parametrize("voxel_mm", [1.0, 2.0, 1.5])
def test_averaging_keeps_the_mass_of_what_was_painted(voxel_mm):
    config = TissueConfig(refine_mm=0.5)
    head = boxes()
    head.labels[np.isin(head.labels, (0, anatomy.SKULL))] = anatomy.CSF
    fine, coarse = made(head, config, voxel_mm=0.5), made(head, config, voxel_mm=voxel_mm)

    def mass(tissue):
        # Without air and bone, what is outside the mask are the parts of sources that its rim leaves over.
        chi = tissue.chi_pos_ppm - tissue.chi_neg_ppm + tissue.chi_outside_ppm
        return float(chi.double().sum()) * np.prod(tissue.grid.voxel_mm)

    assert mass(coarse) == pytest.approx(mass(fine), rel=1e-3)


def test_refining_keeps_regions_and_leaves_no_stairs():
    at = np.arange(40) - 19.5
    distance = np.sqrt(at[:, None, None] ** 2 + at[:, None] ** 2 + at**2)
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    for radius, label in ((19, anatomy.SKULL), (17, anatomy.CSF), (15, 3), (10, 2)):
        labels[distance < radius] = label
    head = LabelMap(labels, np.eye(4), "ball")
    stairs, smooth = made(head), made(head, replace(PLAIN, refine_mm=0.5))
    white = region_of(2)
    # What a ball of white matter in cortex would give: the part of each voxel that the ball fills.
    part = np.clip(10.5 - distance, 0, 1)
    ideal = white.chi_neg_ppb * part + region_of(3).chi_neg_ppb * (1 - part)
    shell = np.abs(distance - 10) < 1.5
    wrong = [np.sqrt(np.mean((1000 * t.chi_neg_ppm.numpy() - ideal)[shell] ** 2)) for t in (stairs, smooth)]
    assert wrong[1] < 0.75 * wrong[0]
    total = [float(t.chi_neg_ppm.sum()) for t in (stairs, smooth)]
    assert total[1] == pytest.approx(total[0], rel=0.02)


def region_of(label: int):
    return next(region for region in REGIONS if label in region.labels)


def test_iron_grows_with_age_as_published_and_myelin_does_not():
    # Hallgren and Sourander: 21.41 (1 − exp(−0.09 · 20)) + 0.37 mg per 100 g in the pallidum at 20 years.
    assert iron_of_age("pallidum", 20.0) == pytest.approx(18.241 / 21.195, rel=1e-3)
    for curve in ("pallidum", "putamen", "caudate", "white"):
        relative = [iron_of_age(curve, age) for age in (10.0, 20.0, 40.0, 70.0, 95.0)]
        assert relative == sorted(relative)
        assert iron_of_age(curve, ATLAS_AGE_YEARS) == 1
    young, old = (made(boxes(), replace(PLAIN, age_years=age)) for age in (20.0, 80.0))
    pallidum = torch.from_numpy(boxes().labels == 13)
    growth = float((old.chi_pos_ppm / young.chi_pos_ppm)[pallidum].mean())
    assert growth == pytest.approx(iron_of_age("pallidum", 80.0) / iron_of_age("pallidum", 20.0), rel=1e-4)
    torch.testing.assert_close(old.chi_neg_ppm, young.chi_neg_ppm)


def test_equal_seeds_give_equal_heads_and_parts_draw_by_themselves(coarse):
    config = TissueConfig(refine_mm=2.0)
    one, again = (made(coarse, config, voxel_mm=4.0, seed=3) for _ in range(2))
    other = made(coarse, config, voxel_mm=4.0, seed=4)
    torch.testing.assert_close(one.chi_pos_ppm, again.chi_pos_ppm, rtol=0, atol=0)
    assert float((one.chi_pos_ppm - other.chi_pos_ppm).abs().max()) > 0.005
    # Without texture the regional means are those of the same person.
    means = []
    for made_of in (config, replace(config, texture_sd=0.0, opposed_sd=0.0, layered=False)):
        tissue = made(coarse, made_of, voxel_mm=4.0, seed=3)
        means.append(float(tissue.chi_pos_ppm[torch.isin(tissue.labels, torch.tensor([12, 51]))].mean()))
    assert means[0] == pytest.approx(means[1], rel=0.1)


def test_people_differ_by_the_asked_spread_alike_on_both_sides():
    labels = np.zeros((8, 8, 8), dtype=np.int16)
    labels[2:6, 2:6, 2:6] = 12
    labels[4:6, 2:6, 2:6] = 51
    head = LabelMap(labels, np.eye(4), "cube")
    config = replace(PLAIN, person_sd=0.2)
    drawn = [made(head, config, seed=seed).chi_pos_ppm for seed in range(200)]
    left, right = (np.array([float(chi[at, 3, 3]) for chi in drawn]) for at in (2, 5))
    np.testing.assert_array_equal(left, right)
    assert left.std() / 0.077 == pytest.approx(0.2, abs=0.04)
    assert left.mean() == pytest.approx(0.077, rel=0.06)


def test_labels_without_a_meaning_count_as_csf():
    head = boxes()
    head.labels[head.labels == anatomy.CSF] = 9999
    torch.testing.assert_close(made(head).m0, made(boxes()).m0)


def test_susceptibility_of_blood_is_in_the_mask_or_outside_but_never_lost():
    head = boxes()
    head.labels[18, 20, 6] = anatomy.VEIN  # at the rim, outside the mask
    head.labels[18, 20, 30] = anatomy.VEIN  # in the brain
    blood = region_of(anatomy.VEIN).chi_pos_ppb / 1000
    tissue = made(head)
    assert tissue.chi_outside_ppm[18, 20, 6] == pytest.approx(blood)
    assert tissue.chi_pos_ppm[18, 20, 30] == pytest.approx(blood)


def test_thin_veins_add_their_blood_and_take_the_place_of_tissue():
    at = np.stack((np.full(80, 20.0), np.full(80, 20.0), np.linspace(14, 22, 80)), axis=-1)
    veins = Veins(at, np.full(80, 0.3), np.full(80, 0.1))
    head = boxes()
    plain, veined = made(head), made(replace(head, veins=veins))
    volume = np.pi * 0.3**2 * 8.0
    gained = float((veined.chi_pos_ppm - plain.chi_pos_ppm).double().sum())
    blood, white, iron = (region_of(label).chi_pos_ppb / 1000 for label in (anatomy.VEIN, 2, 13))
    assert volume * (blood - iron) < gained < volume * (blood - white)
    assert float((plain.chi_neg_ppm - veined.chi_neg_ppm).sum()) > 0


def test_a_whole_brain_has_published_means(tissue):
    brain = tissue.mask
    assert 20 < 1000 * float(tissue.chi_pos_ppm[brain].mean()) < 38
    assert 15 < 1000 * float(tissue.chi_neg_ppm[brain].mean()) < 33
    assert 4.5 < float(tissue.r2prime_hz[brain].mean()) < 7.5
    assert 9 < float(tissue.r2_hz[brain].mean()) < 15
    inside = torch.isin(tissue.labels, torch.tensor(BRAIN_LABELS, dtype=torch.int16))
    assert float(brain[inside].float().mean()) > 0.98


@pytest.mark.parametrize(
    "values",
    [{"person_sd": -0.1}, {"texture_sd": 2.0}, {"opposed_sd": 2.0}, {"age_years": 1.0}, {"refine_mm": 0.1}],
)
def test_spreads_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        TissueConfig(**values)


def test_a_relaxivity_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="D_r"):
        TissueConfig(dr_neg_hz_per_ppm=-1.0).relaxivity(3.0)


def test_anisotropy_follows_b0_and_is_free_of_trace(coarse):
    head = anatomy.with_structures(coarse, np.random.default_rng(1))
    config = TissueConfig(anisotropy_ppb=16.0, refine_mm=math.inf)
    tissue, plain = (
        make_tissue(head, np.random.default_rng(0), c, voxel_mm=(4.0, 4.0, 4.0), b0_t=3.0)
        for c in (config, replace(config, anisotropy_ppb=0.0))
    )
    assert plain.anisotropy_ppm is None
    isotropic = plain.chi_pos_ppm - plain.chi_neg_ppm
    torch.testing.assert_close(plain.chi_ppm, isotropic)
    torch.testing.assert_close(tissue.chi_pos_ppm, plain.chi_pos_ppm)

    def added(*b0: float) -> torch.Tensor:
        return replace(tissue, grid=replace(tissue.grid, b0_direction=b0)).chi_ppm - isotropic

    axes = added(1.0, 0.0, 0.0) + added(0.0, 1.0, 0.0) + added(0.0, 0.0, 1.0)
    torch.testing.assert_close(axes, torch.zeros_like(axes), atol=1e-7, rtol=0)
    # Where voxels are wholly white matter of one direction: Δχ (cos²θ − 1/3), θ the stored angle.
    cosine = torch.cos(plain.fibre_angle_rad).square()
    b0 = plain.grid.b0_direction
    pure = torch.from_numpy(np.isin(plain.labels.numpy(), labelmap.WHITE_MATTER)) & plain.mask
    error = (added(*b0) - 0.016 * (cosine - 1 / 3))[pure].abs()
    assert float(error.median()) < 1e-5
    assert float(added(*b0).abs().max()) < 0.016 * 2 / 3 + 1e-6
