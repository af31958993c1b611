"""Conditions of the independent bench: noise, errors, violations of the model, and the resulting maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chisep.experiments.independent.forward import (
    B0_DIRECTION,
    GRE_TE_S,
    SE_TE_S,
    Array,
    field_noise_ppm,
    rate_fit_hz,
    shifted,
    smooth_noise,
    structured_error_ppm,
    tensor_field,
)
from chisep.experiments.independent.heads import NAMES, WHITE
from chisep.experiments.independent.worlds import Phantom, World

_R2_HZ: Mapping[str, float] = {
    "white matter": 14.0,
    "grey matter": 11.5,
    "CSF": 1.5,
    "thalamus": 13.0,
    "caudate": 13.0,
    "putamen": 14.5,
    "pallidum": 17.5,
    "red nucleus": 17.0,
    "substantia nigra": 17.5,
    "dentate nucleus": 14.5,
}
"""R2 at 3 T by tissue."""
_SIGNAL: Mapping[str, float] = {"white matter": 0.72, "CSF": 0.95}
_USUAL_SIGNAL = 0.82
"""Signal at an echo time of 0, relative."""
_RELAXIVITY_VOXEL = 20.0
_LEAST_FIELD_PPM, _LEAST_RATE_HZ = 1e-5, 1e-2
"""σ of maps without noise: 0 would mean that nothing was measured."""
_ISOTROPIC_SIN2 = 2 / 3
"""Mean of sin² over all directions."""


@dataclass(frozen=True)
class Condition:
    """A condition.

    Parameters
    ----------
    title
        Name in tables.
    snr
        Signal of white matter in the first gradient echo over the SD of the noise of a channel; no noise if
        None.
    structured_ppb
        SD of a band-limited error of the field.
    registration_mm
        Shift of the spin echo, in a random direction.
    oriented
        Whether D_r,neg is proportional to sin²θ in white matter, where the world has a constant.
    relaxivity_sd
        SD over space of the logarithm of both D_r.
    shift_ppb
        Microstructural frequency shift of fibres across B0; that of other fibres is sin²θ of it.
    anisotropy_ppb
        χ along minus χ across fibres; the field is that of the tensor.
    sigma_given
        Whether methods get the true σ of field and R2'; they estimate it otherwise.
    """

    title: str
    snr: float | None = 50.0
    structured_ppb: float = 0.0
    registration_mm: float = 0.0
    oriented: bool = False
    relaxivity_sd: float = 0.0
    shift_ppb: float = 0.0
    anisotropy_ppb: float = 0.0
    sigma_given: bool = True


CONDITIONS: Mapping[str, Condition] = {
    "snr50": Condition("SNR 50"),
    "snr20": Condition("SNR 20", snr=20.0),
    "clean": Condition("no noise", snr=None),
    "structured": Condition("structured field errors, 6 ppb", structured_ppb=6.0),
    "sin2": Condition("D_r,neg ∝ sin²θ", oriented=True),
    "varying": Condition("D_r varies by 20 %", relaxivity_sd=0.2),
    "shift": Condition("microstructure shift, −6 ppb·sin²θ", shift_ppb=-6.0),
    "anisotropic": Condition("anisotropic χ", anisotropy_ppb=16.0),
    "registration": Condition("spin echo 0.25 mm off", registration_mm=0.25),
    "snr50-no-sigma": Condition("SNR 50, σ not given", sigma_given=False),
    "structured-no-sigma": Condition("structured errors, σ not given", structured_ppb=6.0, sigma_given=False),
}
"""Conditions by name; the first is the reference, each other one has one thing changed."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Maps that methods get.

    Parameters
    ----------
    field_ppm, r2prime_hz
        Local field and R2', 0 outside the mask.
    field_sigma_ppm, r2prime_sigma_hz
        Their true σ.
    dr_pos_hz_per_ppm, dr_neg_hz_per_ppm
        True means of D_r, weighted by the source.
    """

    field_ppm: Array
    r2prime_hz: Array
    field_sigma_ppm: Array
    r2prime_sigma_hz: Array
    dr_pos_hz_per_ppm: float
    dr_neg_hz_per_ppm: float


def measure(phantom: Phantom, world: World, condition: Condition, rng: np.random.Generator) -> Measured:
    """Simulate the maps of a phantom under a condition.

    Parameters
    ----------
    phantom, world
        Sources, and their D_r and field strength.
    condition
        Noise, errors and violations.
    rng
        Draws them; a stream of its own for each, so that conditions share what they have in common.
    """
    noise_rng, structure_rng, registration_rng, relaxivity_rng = rng.spawn(4)
    mask = phantom.mask
    dr_pos, dr_neg = _relaxivity_maps(phantom, world, condition, relaxivity_rng)
    r2prime = dr_pos * phantom.chi_pos_ppm + dr_neg * phantom.chi_neg_ppm
    field = _field(phantom, condition)
    r2 = _by_class(phantom, _R2_HZ, 0.0) * (1.0 if world.b0_t < 5 else 1.5)
    field_variance = np.full(mask.shape, _LEAST_FIELD_PPM**2, np.float32)
    rate_variance = np.full(mask.shape, _LEAST_RATE_HZ**2, np.float32)
    displacement = registration_rng.standard_normal(3)
    displacement *= condition.registration_mm / np.linalg.norm(displacement)
    moved = shifted(r2, displacement.tolist()) if condition.registration_mm else r2
    if condition.registration_mm:
        steepness2 = sum(g**2 for g in np.gradient(r2))
        rate_variance += steepness2 * condition.registration_mm**2 / 3
    r2star = r2 + r2prime
    if condition.snr is not None:
        magnitude = _by_class(phantom, _SIGNAL, _USUAL_SIGNAL) + ~mask
        white = phantom.head.classes == WHITE
        first = magnitude[white] * np.exp(-GRE_TE_S[0] * r2star[white])
        noise_sd = float(first.mean()) / condition.snr
        error, sigma = field_noise_ppm(magnitude, r2star, world.b0_t, noise_sd, noise_rng)
        field = field + error
        field_variance += sigma**2
        r2star, sigma_star = rate_fit_hz(magnitude, r2star, GRE_TE_S, noise_sd, noise_rng)
        moved, sigma_r2 = rate_fit_hz(magnitude, moved, SE_TE_S, noise_sd, noise_rng)
        rate_variance += sigma_star**2 + sigma_r2**2
    if condition.structured_ppb:
        field = field + structured_error_ppm(
            mask.shape, condition.structured_ppb, B0_DIRECTION, structure_rng
        )
        field_variance += (condition.structured_ppb / 1000) ** 2
    return Measured(
        field * mask,
        np.maximum(r2star - moved, 0) * mask,
        np.sqrt(field_variance) * mask,
        np.sqrt(rate_variance) * mask,
        _mean(dr_pos, phantom.chi_pos_ppm),
        _mean(dr_neg, phantom.chi_neg_ppm),
    )


def _mean(relaxivity: NDArray[np.float32], chi_ppm: Array) -> float:
    weight = chi_ppm.astype(np.float64)
    return float((relaxivity * weight).sum() / weight.sum())


def _field(phantom: Phantom, condition: Condition) -> Array:
    chi = phantom.chi_pos_ppm - phantom.chi_neg_ppm
    white = phantom.head.classes == WHITE
    if condition.anisotropy_ppb:
        # In proportion to χ_neg of white matter, as both come from myelin.
        delta = np.where(white, phantom.chi_neg_ppm / phantom.chi_neg_ppm[white].mean(), 0)
        delta *= condition.anisotropy_ppb / 1000
        field = tensor_field(chi, delta.astype(np.float32), phantom.head.fibre, B0_DIRECTION)
    else:
        field = phantom.field_ppm
    if condition.shift_ppb:
        field = field + white * _sin2(phantom) * np.float32(condition.shift_ppb / 1000)
    return field


def _sin2(phantom: Phantom) -> Array:
    along = sum(phantom.head.fibre[axis] * b for axis, b in enumerate(B0_DIRECTION))
    made: Array = np.clip(1 - np.asarray(along) ** 2, 0, 1).astype(np.float32)
    return made


def _relaxivity_maps(
    phantom: Phantom, world: World, condition: Condition, rng: np.random.Generator
) -> tuple[Array, Array]:
    shape = phantom.mask.shape
    pos = np.full(shape, world.dr_pos_hz_per_ppm, np.float32)
    neg = np.full(shape, world.dr_neg_hz_per_ppm, np.float32)
    if world.oriented or condition.oriented:
        sin2 = np.where(phantom.head.classes == WHITE, _sin2(phantom), np.float32(_ISOTROPIC_SIN2))
        neg *= sin2
        if not world.oriented:
            neg *= world.dr_neg_hz_per_ppm / _mean(neg, phantom.chi_neg_ppm)
    if condition.relaxivity_sd:
        for volume in (pos, neg):
            volume *= np.exp(condition.relaxivity_sd * smooth_noise(shape, _RELAXIVITY_VOXEL, rng))
    return pos, neg


def _by_class(phantom: Phantom, values: Mapping[str, float], usual: float) -> Array:
    table = np.array([0.0, *(values.get(name, usual) for name in NAMES)], np.float32)
    made: Array = table[phantom.head.classes]
    return made
