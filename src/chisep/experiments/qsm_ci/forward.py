"""Worlds by qsm-forward: the benchmark's generator, on the tissues of a digital phantom.

qsm-forward has the licence GPL-3. It is an extra of this experiment, which has none of its code.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from chisep.errors import InputError
from chisep.experiments.qsm_ci.definitions import Definition, Labels, tissues_of, tracts_of
from chisep.experiments.qsm_ci.worlds import Volume, World, assembled
from chisep.simulation.tissue import Tissue

_TR_S, _FLIP_DEG = 0.05, 15.0
_BLEND_VOXELS = 0.5
"""SD of the Gaussian that blends tissues: a full width at half maximum of 1.2 voxels, as in the benchmark."""
_TEXTURE = (0.3, 3.0)
"""Limits of a source over the mean of its tissue."""


def _library() -> Any:  # noqa: ANN401
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import qsm_forward
    except ImportError as error:
        raise InputError(
            "qsm-forward",
            found="no such package",
            expected="qsm-forward 0.31 or later, for worlds by the benchmark's generator",
            fix="pip install 'chisep[qsm-ci]', or choose --makers chisep.",
        ) from error
    return qsm_forward


def forward_world(tissue: Tissue, definition: Definition, rng: np.random.Generator) -> World:
    """Simulate a world with the benchmark's table of tissues, D_r maps, field, shim, signal and noise.

    Parameters
    ----------
    tissue
        Labels, relaxation, proton density, fibre angle, χ outside of the brain.
    definition
        Of the world.
    rng
        Draws the noise.

    Raises
    ------
    InputError
        If qsm-forward is not installed.
    """
    library = _library()
    mask = tissue.mask.numpy()
    labels = np.asarray(tissue.labels.numpy(), np.int16)
    seg = tissues_of(labels, mask)
    angle = tissue.fibre_angle_rad
    theta = np.zeros(mask.shape, np.float32) if angle is None else np.degrees(angle.numpy())
    pos, neg = _sources(library, tissue, seg, tracts_of(labels, seg), theta, anisotropic=definition.sin2)
    dr_pos, dr_neg = library.generate_dr_maps_ridani(
        seg,
        theta,
        B0=definition.b0_t,
        anisotropic=definition.sin2,
        dr_fixed=definition.dr_pos_hz_per_ppm if definition.name == "mc" else None,
    )
    noise_rng, field_rng = rng.spawn(2)
    images = _images(library, tissue, definition, (pos, neg), (dr_pos, dr_neg), noise_rng)
    dr = (np.asarray(dr_pos, np.float32), np.asarray(dr_neg, np.float32))
    return assembled(tissue, definition, images, pos=pos, neg=neg, rng=field_rng, dr=dr)


def _sources(
    library: Any,  # noqa: ANN401
    tissue: Tissue,
    seg: Labels,
    tracts: Labels,
    theta: Volume,
    *,
    anisotropic: bool,
) -> tuple[Volume, Volume]:
    """χ_pos and χ_neg (magnitude): the benchmark's means, with the texture of the phantom."""
    table: Mapping[int, tuple[float, ...]] = library.CHISEP_TISSUE_PARAMS
    means = np.zeros((2, *seg.shape), np.float32)
    for number in np.unique(seg[seg > 0]):
        means[:, seg == number] = np.array([table[int(number)][0], -table[int(number)][1]])[:, None]
    if anisotropic:
        cos2 = np.cos(np.radians(theta)) ** 2
        for number, (delta, zero) in library.WM_TRACT_ANISOTROPY_ARRAYS.items():
            here = tracts == number
            means[1, here] = -(delta * cos2[here] + zero)
    own = np.stack([tissue.chi_pos_ppm.numpy(), tissue.chi_neg_ppm.numpy()])
    texture = np.ones_like(own)
    for number in np.unique(seg[seg > 0]):
        here = seg == number
        average = own[:, here].mean(1, keepdims=True)
        texture[:, here] = np.where(average > 0, own[:, here] / np.maximum(average, 1e-6), 1.0)
    blended = ndimage.gaussian_filter(means, (0, *(_BLEND_VOXELS,) * 3)) * np.clip(texture, *_TEXTURE)
    inside = blended * tissue.mask.numpy()
    return np.asarray(inside[0], np.float32), np.asarray(inside[1], np.float32)


def _images(
    library: Any,  # noqa: ANN401
    tissue: Tissue,
    definition: Definition,
    sources: tuple[Volume, Volume],
    dr: tuple[Any, Any],
    rng: np.random.Generator,
) -> dict[str, Volume]:
    mask, (pos, neg) = tissue.mask.numpy(), sources
    voxel, direction = np.array(tissue.grid.voxel_mm), np.array(tissue.grid.b0_direction)
    r2prime = library.generate_r2prime(pos, neg, dr=dr[0], dr_neg=dr[1]) * mask
    brain = (pos - neg) * mask
    whole = brain + tissue.chi_outside_ppm.numpy()
    field = library.generate_field(whole, mask, voxel_size=voxel, B0_dir=direction)
    local = library.generate_field(brain, mask, voxel_size=voxel, B0_dir=direction)
    _, shimmed, _ = library.generate_shimmed_field(field, mask, order=2)
    m0 = tissue.m0.numpy()
    offset = library.generate_phase_offset(m0, mask, m0.shape)
    echoes = []
    for te_s in definition.te_s:
        signal = library.generate_signal(
            shimmed,
            B0=definition.b0_t,
            TR=_TR_S,
            TE=te_s,
            flip_angle=_FLIP_DEG,
            phase_offset=offset,
            R1=1 / tissue.t1_s.numpy(),
            M0=m0,
            R2=tissue.r2_hz.numpy(),
            dr_pos=dr[0],
            dr_neg=dr[1],
            chi_pos=pos,
            chi_neg=-neg,
            multicompartment=definition.name == "mc",
        )
        noisy = library.add_noise(signal, peak_snr=definition.snr, rng=rng)
        echoes.append(noisy)
    scan = np.stack(echoes, -1)
    images = {
        "phase": np.angle(scan),
        "magnitude": np.abs(scan),
        "totalfield": shimmed * mask,
        "localfield": local * mask,
        "r2prime": r2prime,
    }
    return {name: np.asarray(image, np.float32) for name, image in images.items()}
