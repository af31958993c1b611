from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from chisep.errors import ChisepWarning, InputError
from chisep.simulation import anatomy
from chisep.simulation.lesions.canvas import Patient
from chisep.simulation.lesions.kinds import (
    KINDS,
    CalcificationConfig,
    CavernomaConfig,
    HemorrhageConfig,
    LesionConfig,
    MicrobleedConfig,
    ParkinsonConfig,
    PatientConfig,
    PlaqueConfig,
    microbleeds,
    random_lesions,
)
from chisep.simulation.lesions.placement import (
    add_lesions,
    graded_series,
    lesion_table,
    make_patient,
    same_lesions,
)
from chisep.simulation.tissue import Tissue
from chisep.types import Grid, Relaxivity

MAPS = ("chi_pos_ppm", "chi_neg_ppm", "r2_hz", "r2prime_hz", "t1_s", "m0")
SIZE_MM = (72.0, 64.0, 56.0)
VENTRICLE, PUTAMEN = 4, 12
CENTRE = (36.0, 40.0, 20.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def block(tissue: Tissue):
    """Maker of a block of brain in air: cortex around white matter, a ventricle, putamen, both nigrae."""

    def make(voxel_mm=(1.0, 1.0, 1.0), chi_pos_ppm: float = 0.02, chi_neg_ppm: float = 0.03) -> Tissue:
        shape = tuple(round(size / edge) for size, edge in zip(SIZE_MM, voxel_mm, strict=True))
        affine = np.diag([*voxel_mm, 1.0])
        affine[:3, 3] = np.array(voxel_mm) / 2
        at = np.ogrid[tuple(slice(0, n) for n in shape)]
        x, y, z = ((index + 0.5) * edge for index, edge in zip(at, voxel_mm, strict=True))

        def box(low, high):
            inside = (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
            return inside & (z > low[2]) & (z < high[2])

        labels = np.zeros(shape, dtype=np.int16)
        for margin, label in ((4, 3), (8, 2)):
            labels[box([margin] * 3, [size - margin for size in SIZE_MM])] = label
        labels[box((12, 20, 34), (20, 48, 44))] = VENTRICLE
        labels[box((44, 12, 12), (60, 30, 36))] = PUTAMEN
        labels[box((40, 36, 34), (46, 50, 40))] = anatomy.NIGRA[1]
        labels[box((26, 36, 34), (32, 50, 40))] = anatomy.NIGRA[0]
        mask, empty = torch.from_numpy(labels > 0), torch.from_numpy(np.isin(labels, (0, VENTRICLE)))
        pos, neg = (chi * (~empty).float() for chi in (chi_pos_ppm, chi_neg_ppm))
        return replace(
            tissue,
            grid=Grid(shape, tuple(voxel_mm), affine=affine),
            relaxivity=Relaxivity(114.0, 80.0),
            chi_pos_ppm=pos,
            chi_neg_ppm=neg,
            r2_hz=torch.full(shape, 14.0),
            r2prime_hz=114.0 * pos + 80.0 * neg,
            t1_s=torch.full(shape, 0.9),
            m0=torch.full(shape, 0.7),
            mask=mask,
            labels=torch.from_numpy(labels),
            chi_outside_ppm=torch.zeros(shape),
        )

    return make


def reading_ppb(patient: Patient, name: str, label: int = 1) -> float:
    return 1000 * float(getattr(patient.tissue, name)[patient.labels == label].mean())


def touched(before: Tissue, after: Tissue) -> torch.Tensor:
    return torch.stack([getattr(before, name) != getattr(after, name) for name in MAPS]).any(0)


def mass(tissue: Tissue, name: str) -> float:
    """Sum of a source in ppm·mm³."""
    return float(getattr(tissue, name).double().sum() * np.prod(tissue.grid.voxel_mm))


# ---- strength, mass, shape -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.0)])
@pytest.mark.parametrize(("strength", "size"), [(20.0, 6.0), (300.0, 9.0), (1500.0, 14.0)])
@pytest.mark.parametrize("kind", ["hemorrhage", "calcification", "microbleed"])
def test_the_label_of_a_solid_lesion_reads_its_strength(block, kind, strength, size, voxel_mm, seed):
    config = KINDS[kind](size_mm=size, strength_ppb=strength, place="white", texture=0.4)
    patient = add_lesions(block(voxel_mm), [config], rng(seed))
    source, other = (
        ("chi_neg_ppm", "chi_pos_ppm") if kind == "calcification" else ("chi_pos_ppm", "chi_neg_ppm")
    )
    assert reading_ppb(patient, source) == pytest.approx(strength, rel=1e-4)
    assert reading_ppb(patient, other) == pytest.approx(0.0, abs=1e-3)
    inside = getattr(patient.tissue, source)[patient.labels == 1]
    assert 0.02 < float(inside.std() / inside.mean()) < 0.4


@pytest.mark.parametrize(
    "config",
    [
        HemorrhageConfig(size_mm=3.0),
        HemorrhageConfig(size_mm=20.0, texture=0.5, irregularity=0.2, elongation=2.0),
        CalcificationConfig(size_mm=1.0),
        MicrobleedConfig(size_mm=2.0),
    ],
)
@pytest.mark.parametrize("voxel_mm", [(0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.7, 1.0, 3.0)])
def test_a_solid_lesion_has_the_mass_of_its_volume_in_any_voxels(block, config, voxel_mm):
    config = replace(config, strength_ppb=400.0, position_mm=CENTRE)
    name = "chi_neg_ppm" if config.kind == "calcification" else "chi_pos_ppm"
    patient = add_lesions(block(voxel_mm, 0.0, 0.0), [config], rng(1))
    volume = math.pi / 6 * config.size_mm**3
    assert mass(patient.tissue, name) == pytest.approx(0.4 * volume, rel=0.02)
    assert patient.lesions[0].volume_mm3 == pytest.approx(volume, rel=0.02)


@pytest.mark.parametrize("config", [HemorrhageConfig(stage="chronic"), CavernomaConfig(), PlaqueConfig()])
def test_hollow_lesions_have_the_same_mass_in_any_voxels(block, config):
    config = replace(config, size_mm=12.0, strength_ppb=100.0, position_mm=CENTRE, place="white")
    masses = [
        mass(add_lesions(block((edge,) * 3, 0.0, 0.0), [config], rng(2)).tissue, "chi_pos_ppm")
        for edge in (0.5, 1.0, 2.0)
    ]
    np.testing.assert_allclose(masses, masses[0], rtol=0.02)


def test_a_plaque_takes_the_same_myelin_in_any_voxels(block):
    config = PlaqueConfig(size_mm=8.0, demyelination=0.5, position_mm=CENTRE)
    for edge in (0.5, 1.0, 2.0):
        healthy = block((edge,) * 3)
        lost = mass(healthy, "chi_neg_ppm") - mass(
            add_lesions(healthy, [config], rng(3)).tissue, "chi_neg_ppm"
        )
        assert lost == pytest.approx(0.5 * 0.03 * math.pi / 6 * 8.0**3, rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_shapes_are_star_shaped_and_irregular(block, seed):
    healthy = block((0.5, 0.5, 0.5))
    config = HemorrhageConfig(size_mm=14.0, irregularity=0.2, elongation=1.0, position_mm=CENTRE, texture=0.0)
    label = add_lesions(healthy, [config], rng(seed)).labels.numpy() == 1
    assert ndimage.label(label)[1] == 1
    centre = np.array(CENTRE) / 0.5 - 0.5
    offsets = np.argwhere(label) - centre
    for part in (0.3, 0.6, 0.9):
        assert label[tuple(np.rint(centre + part * offsets).astype(int).T)].mean() > 0.995
    rim = label & ~ndimage.binary_erosion(label)
    radius = 0.5 * np.linalg.norm(np.argwhere(rim) - centre, axis=1)
    assert 0.1 < radius.std() / radius.mean() < 0.35


def test_elongation_is_longest_over_shortest_axis(block):
    config = HemorrhageConfig(size_mm=12.0, elongation=2.0, irregularity=0.0, position_mm=CENTRE)
    patient = add_lesions(block((0.5, 0.5, 0.5)), [config], rng(4))
    spread = np.linalg.eigvalsh(np.cov(np.argwhere(patient.labels.numpy() == 1).T))
    assert np.sqrt(spread[2] / spread[0]) == pytest.approx(2.0, rel=0.08)


def test_edges_are_soft(block):
    config = CalcificationConfig(size_mm=8.0, strength_ppb=500.0, position_mm=CENTRE, texture=0.0)
    chi_neg = add_lesions(block(chi_neg_ppm=0.0), [config], rng(5)).tissue.chi_neg_ppm
    between = (chi_neg > 0.05) & (chi_neg < 0.45)
    assert 0.2 < float(between.sum() / (chi_neg > 0.25).sum()) < 0.9


def test_a_lesion_does_not_depend_on_how_the_voxels_lie(block):
    healthy = block((1.0, 1.0, 2.0))
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1.0, healthy.grid.shape[0] - 1
    affine = (healthy.grid.affine @ flip)[:, [1, 0, 2, 3]]
    i, j, k = healthy.grid.shape
    grid = Grid((j, i, k), (1.0, 1.0, 2.0), affine=affine)
    turned = {
        name: value.flip(0).transpose(0, 1).contiguous()
        for name, value in vars(healthy).items()
        if isinstance(value, torch.Tensor) and value.shape == healthy.mask.shape
    }
    config = CavernomaConfig(size_mm=12.0, position_mm=CENTRE, elongation=1.8)
    straight = add_lesions(healthy, [config], rng(6))
    other = add_lesions(replace(healthy, grid=grid, **turned), [config], rng(6))
    back = other.tissue.chi_pos_ppm.transpose(0, 1).flip(0)
    torch.testing.assert_close(back, straight.tissue.chi_pos_ppm, atol=1e-3, rtol=1e-3)
    assert float((back - healthy.chi_pos_ppm).abs().max()) > 0.1


# ---- relaxation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_r2prime_is_relaxivity_times_sources(block, kind):
    patient = add_lesions(block(), [KINDS[kind](size_mm=9.0, strength_ppb=200.0)], rng(7))
    tissue = patient.tissue
    expected = 114.0 * tissue.chi_pos_ppm + 80.0 * tissue.chi_neg_ppm
    torch.testing.assert_close(tissue.r2prime_hz, expected, rtol=1e-5, atol=1e-5)


def test_what_is_left_of_tissue_keeps_its_dependence_on_fibre_angle(block):
    healthy = block()
    healthy = replace(healthy, r2prime_hz=0.4 * healthy.r2prime_hz)
    config = PlaqueConfig(size_mm=9.0, demyelination=0.5, position_mm=CENTRE)
    patient = add_lesions(healthy, [config], rng(8))
    inside = patient.labels == 1
    expected = 0.4 * (114.0 * 0.02 + 80.0 * 0.5 * 0.03)
    assert float(patient.tissue.r2prime_hz[inside].mean()) == pytest.approx(expected, rel=1e-4)


def test_r2_rises_with_iron_and_falls_with_water(block):
    healthy = block()

    def r2(config: LesionConfig) -> float:
        patient = add_lesions(healthy, [replace(config, size_mm=9.0, position_mm=CENTRE)], rng(9))
        return float(patient.tissue.r2_hz[patient.labels == 1].mean())

    assert r2(MicrobleedConfig(strength_ppb=1000.0)) > 4 * 14.0
    assert r2(HemorrhageConfig(strength_ppb=400.0)) > r2(HemorrhageConfig(strength_ppb=100.0)) > 14.0
    assert r2(PlaqueConfig(demyelination=0.9)) < r2(PlaqueConfig(demyelination=0.3)) < 14.0
    double = replace(healthy, b0_t=6.0)
    patient = add_lesions(double, [MicrobleedConfig(strength_ppb=1000.0, size_mm=9.0)], rng(9))
    assert float(patient.tissue.r2_hz[patient.labels == 1].mean()) == pytest.approx(14.0 + 120.0, rel=0.01)


# ---- kinds ---------------------------------------------------------------------------------------------


def shells(patient: Patient) -> tuple[float, float, float]:
    """Mean χ_pos in ppb of the inner half, the outermost 1.5 mm, and 2 to 4 mm around a label."""
    label = (patient.labels == 1).numpy()
    chi = 1000 * patient.tissue.chi_pos_ppm.numpy()
    inner, outer = ndimage.distance_transform_edt(label), ndimage.distance_transform_edt(~label)
    deep = inner > inner.max() / 2
    return (
        float(chi[deep].mean()),
        float(chi[(inner > 0) & (inner < 1.5)].mean()),
        float(chi[(outer > 2) & (outer < 4)].mean()),
    )


def test_a_chronic_hemorrhage_is_fluid_in_a_rim(block):
    config = HemorrhageConfig(
        size_mm=14.0, strength_ppb=600.0, stage="chronic", rim_mm=2.0, position_mm=CENTRE, texture=0.0
    )
    patient = add_lesions(block(), [config], rng(10))
    core, rim, around = shells(patient)
    assert core == pytest.approx(60.0, rel=0.05)
    assert 500 < rim <= 600
    assert around == pytest.approx(20.0, abs=1.0)
    assert float(patient.tissue.r2_hz[36, 40, 20]) < 7.0


def test_an_acute_hemorrhage_lies_in_oedema(block):
    config = HemorrhageConfig(
        size_mm=10.0, oedema_mm=4.0, position_mm=CENTRE, irregularity=0.0, elongation=1.0
    )
    patient = add_lesions(block(), [config], rng(11))
    distance = np.linalg.norm(np.argwhere(patient.labels.numpy() > -1) + 0.5 - CENTRE, axis=1)
    distance = torch.from_numpy(distance.reshape(patient.labels.shape))
    oedema, beyond = (distance > 6) & (distance < 8), (distance > 10) & (distance < 12)
    assert float(patient.tissue.r2_hz[oedema].mean()) == pytest.approx(0.7 * 14.0, rel=1e-3)
    assert float(patient.tissue.chi_neg_ppm[oedema].mean()) == pytest.approx(0.85 * 0.03, rel=1e-3)
    assert float(patient.tissue.r2_hz[beyond].mean()) == pytest.approx(14.0, rel=1e-6)
    assert not patient.labels[oedema].any()


def test_a_cavernoma_has_caverns_of_different_blood_in_a_rim(block):
    config = CavernomaConfig(size_mm=18.0, strength_ppb=500.0, core=0.4, position_mm=CENTRE)
    patient = add_lesions(block((0.5, 0.5, 0.5)), [config], rng(12))
    core, rim, _ = shells(patient)
    assert core == pytest.approx(200.0, rel=0.2)
    assert rim > 400
    label = (patient.labels == 1).numpy()
    deep = ndimage.distance_transform_edt(label) > 6
    caverns = patient.tissue.chi_pos_ppm.numpy()[deep]
    assert 0.15 < caverns.std() / caverns.mean() < 0.6


def test_a_plaque_loses_myelin_and_keeps_iron(block):
    healthy = block()
    patient = add_lesions(healthy, [PlaqueConfig(size_mm=10.0, demyelination=0.8)], rng(13))
    inside = patient.labels == 1
    assert reading_ppb(patient, "chi_neg_ppm") == pytest.approx(0.2 * 30.0, rel=1e-4)
    torch.testing.assert_close(patient.tissue.chi_pos_ppm, healthy.chi_pos_ppm)
    assert float(patient.tissue.m0[inside].mean()) > 0.7
    assert float(patient.tissue.t1_s[inside].mean()) > 0.9


def test_an_iron_rim_surrounds_a_plaque(block):
    config = PlaqueConfig(size_mm=14.0, strength_ppb=50.0, rim_mm=2.0, position_mm=CENTRE, texture=0.0)
    core, rim, around = shells(add_lesions(block(), [config], rng(14)))
    assert core == pytest.approx(20.0, abs=1.0)
    assert 60 < rim <= 70
    assert around == pytest.approx(20.0, abs=1.0)


def test_periventricular_plaques_point_away_from_the_ventricle(block):
    healthy = block()
    ventricle = ndimage.distance_transform_edt((healthy.labels != VENTRICLE).numpy())
    gaps, along = [], []
    for seed in range(8):
        patient = add_lesions(
            healthy, [PlaqueConfig(size_mm=7.0, elongation=2.5, irregularity=0.0)], rng(seed)
        )
        label = (patient.labels == 1).numpy()
        gaps.append(ventricle[label].min())
        axis = np.linalg.eigh(np.cov(np.argwhere(label).T))[1][:, -1]
        slope = np.array([g[label].mean() for g in np.gradient(ventricle)])
        along.append(abs(axis @ slope) / np.linalg.norm(slope))
    assert max(gaps) < 7
    assert np.mean(along) > 0.9


@pytest.mark.parametrize("side", ["both", "left", "right"])
def test_parkinsons_disease_raises_iron_in_the_nigra_only(block, side):
    healthy = block()
    patient = add_lesions(healthy, [ParkinsonConfig(rise=0.4, side=side)], rng(15))
    expected = {"both": anatomy.NIGRA, "left": anatomy.NIGRA[:1], "right": anatomy.NIGRA[1:]}[side]
    nigra = torch.isin(healthy.labels, torch.tensor(expected, dtype=torch.int16))
    assert torch.equal(touched(healthy, patient.tissue), nigra)
    assert torch.equal(patient.labels > 0, nigra)
    for row, label in zip(patient.lesions, expected, strict=True):
        here = healthy.labels == label
        assert 1000 * float(patient.tissue.chi_pos_ppm[here].mean()) == pytest.approx(28.0, rel=1e-4)
        assert (row.strength_ppb, row.chi_pos_ppb) == pytest.approx((8.0, 28.0), rel=1e-4)
        assert row.volume_mm3 == pytest.approx(6 * 14 * 6)
        back, front = here.clone(), here.clone()
        back[:, 40:], front[:, :46] = False, False
        assert float(patient.tissue.chi_pos_ppm[back].mean()) > 1.1 * float(
            patient.tissue.chi_pos_ppm[front].mean()
        )
    expected = 114.0 * patient.tissue.chi_pos_ppm + 80.0 * patient.tissue.chi_neg_ppm
    torch.testing.assert_close(patient.tissue.r2prime_hz, expected)


# ---- places --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(block) -> tuple[Tissue, tuple[LesionConfig, ...], list[Patient]]:
    """Patients with the first n of several random lesions."""
    healthy = block()
    lesions = random_lesions(rng(16), tuple(KINDS), 8, size_mm=(2.0, 12.0))
    return healthy, lesions, [add_lesions(healthy, lesions[:n], rng(17)) for n in range(len(lesions) + 1)]


def test_lesions_do_not_overlap(crowd):
    healthy, lesions, patients = crowd
    assert len(patients[-1].lesions) == len(lesions)
    parts = [touched(before.tissue, after.tissue) for before, after in pairwise(patients)]
    assert all(part.any() for part in parts)
    assert not any((one & other).any() for one, other in combinations(parts, 2))
    assert torch.equal(touched(healthy, patients[0].tissue), torch.zeros_like(healthy.mask))


def test_lesions_stay_in_the_brain_and_out_of_ventricles(crowd):
    healthy, _, patients = crowd
    changed = touched(healthy, patients[-1].tissue)
    assert healthy.mask[changed].all()
    assert not (healthy.labels[changed] == VENTRICLE).any()


def test_sources_stay_above_zero_and_the_healthy_head_as_it_was(crowd, block):
    healthy, _, patients = crowd
    for name in MAPS:
        assert float(getattr(patients[-1].tissue, name).min()) >= 0
        assert torch.equal(getattr(healthy, name), getattr(block(), name))


def test_the_table_says_what_the_labels_read(crowd):
    _, lesions, patients = crowd
    patient = patients[-1]
    assert patient.labels.dtype == torch.int16
    assert sorted(patient.labels.unique().tolist()) == list(range(len(lesions) + 1))
    for number, (row, config) in enumerate(zip(patient.lesions, lesions, strict=True), start=1):
        assert (row.label, row.kind, row.strength_ppb) == (number, config.kind, config.strength_ppb)
        assert row.chi_pos_ppb == pytest.approx(reading_ppb(patient, "chi_pos_ppm", number))
        assert row.chi_neg_ppb == pytest.approx(reading_ppb(patient, "chi_neg_ppm", number))
        centre = np.argwhere(patient.labels.numpy() == number).mean(0) + 0.5
        assert np.linalg.norm(centre - row.position_mm) < 0.2 * config.size_mm + 1


def test_equal_seeds_make_equal_patients(crowd):
    healthy, lesions, patients = crowd
    again, other = add_lesions(healthy, lesions, rng(17)), add_lesions(healthy, lesions, rng(18))
    assert not touched(again.tissue, patients[-1].tissue).any()
    assert again.lesions == patients[-1].lesions
    assert touched(other.tissue, patients[-1].tissue).any()


def test_the_same_lesions_on_finer_voxels_average_to_the_coarse_ones(block):
    coarse, fine = block((2.0, 2.0, 2.0)), block()
    lesions = [ParkinsonConfig(), *(kind(size_mm=7.0, place="white") for kind in KINDS.values())]
    patient = add_lesions(coarse, lesions, rng(32))
    again = same_lesions(patient, fine)
    assert len(patient.lesions) == 7
    for row, other in zip(patient.lesions, again.lesions, strict=True):
        assert (row.label, row.kind) == (other.label, other.kind)
        assert row.position_mm == pytest.approx(other.position_mm)
        assert row.volume_mm3 == pytest.approx(other.volume_mm3, rel=0.02)
    changed = touched(coarse, patient.tissue)
    for name in ("chi_pos_ppm", "chi_neg_ppm", "r2_hz"):
        averaged = torch.nn.functional.avg_pool3d(getattr(again.tissue, name)[None], 2)[0]
        expected = getattr(patient.tissue, name)
        error = (averaged - expected)[changed].norm() / (expected - getattr(coarse, name))[changed].norm()
        assert float(error) < 0.1
    assert same_lesions(patient, coarse).lesions == patient.lesions


@pytest.mark.parametrize(
    ("place", "labels"), [("white", {2}), ("deep-grey", {PUTAMEN}), ("cortex", {3}), ("lobar", {2, 3})]
)
def test_centres_lie_in_their_place(block, place, labels):
    healthy = block()
    lesions = [MicrobleedConfig(size_mm=1.0, place=place)] * 25
    patient = add_lesions(healthy, lesions, rng(19))
    found = {
        int(healthy.labels[tuple(np.floor(np.array(row.position_mm)).astype(int))]) for row in patient.lesions
    }
    assert found == labels


def test_a_given_position_is_kept(block):
    config = HemorrhageConfig(size_mm=6.0, position_mm=(40.3, 38.9, 21.2))
    patient = add_lesions(block((1.0, 2.0, 1.0)), [config], rng(20))
    assert patient.lesions[0].position_mm == pytest.approx((40.3, 38.9, 21.2))


@pytest.mark.parametrize(
    "position",
    [(2.0, 30.0, 30.0), (7.0, 30.0, 30.0), (16.0, 30.0, 40.0), (300.0, 0.0, 0.0), (43.0, 40.0, 20.0)],
)
def test_positions_outside_in_a_ventricle_or_too_close_are_refused(block, position):
    lesions = [HemorrhageConfig(size_mm=8.0, position_mm=at, oedema_mm=0.0) for at in (CENTRE, position)]
    with pytest.raises(InputError, match="no room"):
        add_lesions(block(), lesions, rng(21))


def test_lesions_without_room_are_left_out_with_a_warning(block):
    with pytest.warns(ChisepWarning, match="2 of 3 lesions"):
        patient = add_lesions(
            block(),
            [HemorrhageConfig(size_mm=60.0), CalcificationConfig(), MicrobleedConfig(size_mm=60.0)],
            rng(22),
        )
    assert [row.kind for row in patient.lesions] == ["calcification"]
    healthy = block()
    with pytest.warns(ChisepWarning, match="parkinson"):
        add_lesions(replace(healthy, labels=torch.full_like(healthy.labels, 2)), [ParkinsonConfig()], rng())


# ---- cohorts and series --------------------------------------------------------------------------------


def test_random_sizes_and_strengths_are_log_uniform_within_what_is_typical():
    drawn = random_lesions(rng(23), ("calcification",), 2000)
    sizes, strengths = ([getattr(d, name) for d in drawn] for name in ("size_mm", "strength_ppb"))
    assert 1 <= min(sizes) < max(sizes) <= 15
    assert 20 <= min(strengths) < max(strengths) <= 1500
    assert np.median(sizes) == pytest.approx(math.sqrt(15), rel=0.1)
    assert np.median(strengths) == pytest.approx(math.sqrt(20 * 1500), rel=0.15)


def test_random_kinds_are_alike_often_and_stages_and_rims_vary():
    drawn = random_lesions(rng(24), tuple(KINDS), 1000)
    for options in KINDS.values():
        assert 150 < sum(type(d) is options for d in drawn) < 250
    assert {d.stage for d in drawn if isinstance(d, HemorrhageConfig)} == {"acute", "chronic"}
    plaques = [d for d in drawn if isinstance(d, PlaqueConfig)]
    assert 0.3 < np.mean([d.strength_ppb == 0 for d in plaques]) < 0.7


def test_random_lesions_do_not_depend_on_how_many_there_are():
    kinds = ("hemorrhage", "plaque")
    assert random_lesions(rng(25), kinds, 3) == random_lesions(rng(25), kinds, 9)[:3]
    assert random_lesions(rng(25), (), 9) == ()


def test_microbleeds_are_small_and_of_one_distribution():
    drawn = microbleeds(rng(26), 20, place="deep", size_mm=(2.0, 4.0))
    assert all(isinstance(d, MicrobleedConfig) and d.place == "deep" and 2 <= d.size_mm <= 4 for d in drawn)
    assert len(drawn) == 20


@pytest.mark.parametrize("kind", ["hemorrhage", "calcification"])
def test_a_graded_series_reads_its_strengths_in_order(block, kind):
    strengths = [1000.0, 20.0, 500.0, 100.0, 250.0]
    patient = graded_series(block(), strengths, kind, rng(27), size_mm=5.0, separation_mm=3.0)
    name = "chi_neg_ppb" if kind == "calcification" else "chi_pos_ppb"
    assert [getattr(row, name) for row in patient.lesions] == pytest.approx(strengths, rel=1e-4)
    for one, other in combinations(patient.lesions, 2):
        assert math.dist(one.position_mm, other.position_mm) > 5 + 3


def test_a_series_without_room_is_refused(block):
    with pytest.raises(InputError, match="room for"):
        graded_series(block(), [100.0] * 40, "hemorrhage", rng(28), size_mm=12.0)


def test_a_patient_of_the_packaged_head(tissue):
    config = PatientConfig(kinds=tuple(KINDS), count=8, size_mm=(2.0, 10.0))
    patient = make_patient(tissue, rng(29), config)
    assert len(patient.lesions) == 8
    assert tissue.mask[touched(tissue, patient.tissue)].all()
    assert make_patient(tissue, rng(29), config).lesions == patient.lesions
    healthy = make_patient(tissue, rng(29), PatientConfig())
    assert healthy.lesions == ()
    assert not touched(tissue, healthy.tissue).any()


def test_a_patient_may_have_parkinsons_disease_too(block):
    patient = make_patient(
        block(), rng(30), PatientConfig(kinds=("microbleed",), count=4, parkinson_rise=0.3)
    )
    assert [row.kind for row in patient.lesions] == ["parkinson"] * 2 + ["microbleed"] * 4


def test_the_table_is_tab_separated(crowd):
    patient = crowd[2][-1]
    head, *rows = [line.split("\t") for line in lesion_table(patient.lesions).splitlines()]
    assert head[:2] == ["index", "name"]
    assert [int(row[0]) for row in rows] == [lesion.label for lesion in patient.lesions]
    assert [float(row[head.index("chi_pos_ppb")]) for row in rows] == pytest.approx(
        [lesion.chi_pos_ppb for lesion in patient.lesions], abs=0.006
    )


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (HemorrhageConfig, {"size_mm": 0.0}),
        (HemorrhageConfig, {"size_mm": math.nan}),
        (HemorrhageConfig, {"strength_ppb": -1.0}),
        (HemorrhageConfig, {"rim_mm": 0.0}),
        (HemorrhageConfig, {"oedema_mm": -1.0}),
        (CalcificationConfig, {"elongation": 0.5}),
        (CalcificationConfig, {"irregularity": 0.5}),
        (CalcificationConfig, {"texture": 0.6}),
        (CavernomaConfig, {"rim_mm": 20.0}),
        (CavernomaConfig, {"core": 1.5}),
        (PlaqueConfig, {"demyelination": 1.1}),
        (PlaqueConfig, {"rim_mm": 0.0}),
        (ParkinsonConfig, {"rise": -0.1}),
        (PatientConfig, {"count": -1}),
        (PatientConfig, {"size_mm": (5.0, 2.0)}),
        (PatientConfig, {"strength_ppb": (0.0, 2.0)}),
        (PatientConfig, {"parkinson_rise": -1.0}),
    ],
)
def test_impossible_options_are_refused(make, values):
    with pytest.raises(InputError, match=next(iter(values)).removeprefix("parkinson_")):
        make(**values)


@pytest.mark.parametrize("ranges", [{"size_mm": (20.0, 25.0)}, {"strength_ppb": (1.0, 50.0)}])
def test_ranges_without_anything_typical_are_refused(ranges):
    with pytest.raises(InputError, match=next(iter(ranges))):
        random_lesions(rng(), ("microbleed",), 1, **ranges)
