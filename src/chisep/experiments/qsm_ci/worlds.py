"""Worlds of the benchmark on disk, in its folder layout, made by chisep's simulator or by qsm-forward."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import chisep
from chisep.experiments.qsm_ci.definitions import Definition, Labels, Maker, tissues_of, tracts_of
from chisep.io import nifti
from chisep.io.files import checksum, write_json
from chisep.physics.relaxation import r2_at_field_hz
from chisep.physics.signal import hz_per_ppm, r2prime_of_sources
from chisep.simulation.dataset import SimulateConfig, healthy_tissue
from chisep.simulation.fields import total_field
from chisep.simulation.measured import rate_sigma_hz
from chisep.simulation.scanner import scan_gre, session_coils
from chisep.simulation.tissue import Tissue, TissueConfig
from chisep.types import Affine, Relaxivity

Volume = NDArray[np.float32]
_TR_S, _FLIP_DEG = 0.05, 15.0
_STREAM = 25
RECORD = "world.json"


@dataclass(frozen=True, eq=False)
class World:
    """Maps of a world, shape (i, j, k); echoes (i, j, k, echo).

    Parameters
    ----------
    inputs
        Files of a stage's inputs by their names in the benchmark.
    truth
        Files of the truth: χ map, sources, dseg, wm_rois, theta (degrees), and D_r maps.
    affine
        Of all of them.
    parameters
        Content of params.json.
    """

    inputs: dict[str, NDArray[Any]]
    truth: dict[str, NDArray[Any]]
    affine: Affine
    parameters: dict[str, Any]


@dataclass(frozen=True)
class HeadOptions:
    """Head of a world: label map (None: the packaged head), voxel edge in mm, seed."""

    labels: Path | None
    voxel_mm: float
    seed: int


def written_world(folder: Path, definition: Definition, maker: Maker, head: HeadOptions) -> Path:
    """Make a world and write it; a complete one of the same options is kept.

    Returns
    -------
    Path
        The folder, with `inputs` and `groundtruth`.

    Raises
    ------
    InputError
        If the label map cannot be used, or qsm-forward is not installed.
    """
    options = asdict(head) | {"labels": None if head.labels is None else checksum(head.labels)}
    record = json.loads(
        json.dumps(
            {"GeneratedBy": f"chisep {chisep.__version__}", "Maker": maker}
            | {"Definition": asdict(definition) | {"snr": str(definition.snr)}, "Head": options}
        )
    )
    file = folder / RECORD
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == record:
        return folder
    world = _made(definition, maker, head)
    for part, images in (("inputs", world.inputs), ("groundtruth", world.truth)):
        for name, data in images.items():
            dtype = np.int16 if data.dtype.kind in "bi" else np.float32
            nifti.save(folder / part / f"{name}.nii.gz", data, world.affine, dtype=dtype)
    write_json(folder / "inputs" / "params.json", world.parameters)
    write_json(file, record)
    return folder


def _made(definition: Definition, maker: Maker, head: HeadOptions) -> World:
    tissue = head_tissue(definition, head)
    rng = np.random.default_rng([head.seed, _STREAM])
    if maker == "qsm-forward":
        from chisep.experiments.qsm_ci.forward import forward_world

        return forward_world(tissue, definition, rng)
    return _simulated(tissue, definition, rng)


def head_tissue(definition: Definition, head: HeadOptions) -> Tissue:
    """Tissue of a head with the field strength and the D_r of a world."""
    tissue = _tissue(head, definition.sin2)
    d_r = Relaxivity(definition.dr_pos_hz_per_ppm, definition.mean_dr_neg_hz_per_ppm)
    dephasing_neg = tissue.r2prime_hz - tissue.chi_pos_ppm  # D_r of the base is 1
    return replace(
        tissue,
        b0_t=definition.b0_t,
        relaxivity=d_r,
        r2prime_hz=r2prime_of_sources(tissue.chi_pos_ppm, dephasing_neg, d_r),
        r2_hz=r2_at_field_hz(tissue.r2_hz, definition.b0_t),
    )


@lru_cache(maxsize=2)
def _tissue(head: HeadOptions, sin2: bool) -> Tissue:
    """Tissue at 3 T with a D_r of 1 for both sources."""
    config = SimulateConfig(
        out=Path("unused"),
        labels=() if head.labels is None else (head.labels,),
        voxel_mm=head.voxel_mm,
        seed=head.seed,
        tissue=TissueConfig(
            orientation_effect=sin2,
            dr_pos_hz_per_ppm=1.0,
            dr_neg_hz_per_ppm=1.0,
            refine_mm=max(0.5, head.voxel_mm / 2),
        ),
    )
    return healthy_tissue(config, 0)


def _simulated(tissue: Tissue, definition: Definition, rng: np.random.Generator) -> World:
    """World by chisep's tissue, fields, coils, signal and noise."""
    config = SimulateConfig(
        out=Path("unused"),
        voxel_mm=tissue.grid.voxel_mm,
        b0_t=definition.b0_t,
        te_gre_s=definition.te_s,
        tr_gre_s=_TR_S,
        flip_deg=_FLIP_DEG,
        snr=definition.snr,
    )
    coils_rng, noise_rng, field_rng = rng.spawn(3)
    fields = total_field(tissue)
    coils = session_coils(tissue, config, coils_rng)
    signal = scan_gre(tissue, fields.total_ppm, coils, config, noise_rng).movedim(0, -1)
    mask = tissue.mask
    images = {
        "phase": signal.angle(),
        "magnitude": signal.abs(),
        "totalfield": fields.total_ppm * mask,
        "localfield": fields.local_ppm * mask,
        "r2prime": tissue.r2prime_hz,
    }
    arrays = {name: np.asarray(image.numpy(), np.float32) for name, image in images.items()}
    return assembled(
        tissue,
        definition,
        arrays,
        pos=tissue.chi_pos_ppm.numpy(),
        neg=tissue.chi_neg_ppm.numpy(),
        rng=field_rng,
    )


def assembled(
    tissue: Tissue,
    definition: Definition,
    images: dict[str, Volume],
    *,
    pos: Volume,
    neg: Volume,
    rng: np.random.Generator,
    dr: tuple[Volume, Volume] | None = None,
) -> World:
    """Gather the files of a world.

    Parameters
    ----------
    tissue
        Grid, mask, labels, fibre angle.
    definition
        Of the world.
    images
        Phase, magnitude (i, j, k, echo), totalfield, localfield, r2prime.
    pos, neg
        True sources in ppm, both ≥ 0.
    rng
        Draws the noise of `localfield-noisy`, that of the phase over the longest echo time.
    dr
        Maps of D_r,pos and D_r,neg; by default those of the tissue.
    """
    mask = tissue.mask.numpy()
    seg = tissues_of(np.asarray(tissue.labels.numpy(), np.int16), mask)
    tracts = tracts_of(np.asarray(tissue.labels.numpy(), np.int16), seg)
    angle = tissue.fibre_angle_rad
    theta = np.zeros(mask.shape, np.float32) if angle is None else np.degrees(angle.numpy())
    theta = np.where(seg == 8, theta, 0).astype(np.float32)
    if dr is None:
        dr = _dr_maps(definition, seg, theta, mask)
    inputs = dict(images) | {"mask": mask.astype(np.int16), "chimap": ((pos - neg) * mask)}
    inputs["localfield-noisy"] = _noisy_field(images, mask, definition, rng)
    direction = tissue.grid.b0_direction
    return World(
        inputs,
        {
            "chimap": ((pos - neg) * mask),
            "chi-para": pos * mask,
            "chi-dia": neg * mask,
            "dseg": seg,
            "wm_rois": tracts,
            "theta": theta,
            "dr_pos": dr[0],
            "dr_neg": dr[1],
        },
        tissue.grid.matrix(),
        {
            "TE": list(definition.te_s),
            "B0": definition.b0_t,
            "B0_dir": list(direction),
            "voxel_size": list(tissue.grid.voxel_mm),
        },
    )


def _dr_maps(definition: Definition, seg: Labels, theta: Volume, mask: NDArray[np.bool_]) -> tuple[Any, Any]:
    sin2 = 1.5 * np.sin(np.radians(theta)) ** 2 if definition.sin2 else np.ones_like(theta)
    neg = definition.mean_dr_neg_hz_per_ppm * np.where(seg == 8, sin2, 1.0)
    pos = definition.dr_pos_hz_per_ppm * mask
    return pos.astype(np.float32), (neg * mask).astype(np.float32)


def _noisy_field(
    images: dict[str, Volume], mask: NDArray[np.bool_], definition: Definition, rng: np.random.Generator
) -> Volume:
    """Local field with the noise of a weighted fit of the phase over the echo times."""
    if not math.isfinite(definition.snr):
        return images["localfield"]
    magnitude = torch.from_numpy(images["magnitude"]).movedim(-1, 0)
    sigma = rate_sigma_hz(magnitude, torch.from_numpy(mask), definition.te_s, definition.snr)
    sigma = sigma / (2 * torch.pi * hz_per_ppm(definition.b0_t))
    noise = rng.standard_normal(mask.shape, dtype=np.float32) * sigma.numpy()
    return np.asarray((images["localfield"] + noise) * mask, np.float32)
