"""Which figures of a session the report shows, in the order of the stages, and what to look for in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from chisep import figures, metrics
from chisep.figures import EchoArrays, MaskArray, VolumeArray
from chisep.report.subject import Panel, RegionRow
from chisep.types import Affine

LabelArray = Int[np.ndarray, "i j k"]
"""Label of every voxel, 0 outside."""

_PPB = 1000.0


@dataclass(frozen=True, eq=False)
class SessionImages:
    """All images of a session on the grid of its gradient echo.

    Parameters
    ----------
    affine
        Voxel index to scanner mm.
    te_s
        Echo times of the gradient echo in seconds.
    magnitude
        Gradient-echo magnitude, shape (echo, i, j, k).
    unwrapped_rad
        Unwrapped phase in radians, shape (echo, i, j, k).
    mask, eroded_mask
        Brain, and where the local field is known.
    total_field_ppm, local_field_ppm, qsm_ppm, chi_pos_ppm, chi_neg_ppm, chi_ppm
        Fields and susceptibilities in ppm.
    r2star_hz, r2_hz, r2prime_hz
        Relaxation rates in 1/s; R2 is None without spin echo.
    """

    affine: Affine
    te_s: Sequence[float]
    magnitude: EchoArrays
    unwrapped_rad: EchoArrays
    mask: MaskArray
    eroded_mask: MaskArray
    total_field_ppm: VolumeArray
    local_field_ppm: VolumeArray
    r2star_hz: VolumeArray
    r2_hz: VolumeArray | None
    r2prime_hz: VolumeArray
    qsm_ppm: VolumeArray
    chi_pos_ppm: VolumeArray
    chi_neg_ppm: VolumeArray
    chi_ppm: VolumeArray


def panels(images: SessionImages, convergence: Mapping[str, Any]) -> list[Panel]:
    """Make the figures of every stage.

    Parameters
    ----------
    images
        Results of the stages.
    convergence
        Name of an iterative method → its convergence as `Convergence` has it.
    """
    affine, mask, inside = images.affine, images.mask, images.eroded_mask
    rates = {"R2*": images.r2star_hz, "R2": images.r2_hz, "R2′": images.r2prime_hz}
    shown = [
        Panel.of_figure(
            "Separated sources",
            "Iron-rich nuclei are bright in χ_pos, white matter in χ_neg. Stripes along the magic angle or "
            "a bright rim at the edge of the mask come from the field, not from tissue.",
            figures.source_maps(images.chi_pos_ppm, images.chi_neg_ppm, images.chi_ppm, affine, inside),
            alt="Maps of χ_pos, χ_neg and χ in sagittal, coronal and axial planes.",
        ),
        Panel.of_figure(
            "Distribution",
            "χ_pos and χ_neg are 0 at least; a large peak at 0 means that the method often hit that bound.",
            figures.histogram(
                {
                    figures.CHI_POS: _PPB * images.chi_pos_ppm,
                    figures.CHI_NEG: _PPB * images.chi_neg_ppm,
                    figures.CHI: _PPB * images.chi_ppm,
                },
                inside,
                unit="ppb",
                window=figures.TOTAL_WINDOW_PPB,
            ),
            alt="Histograms of χ_pos, χ_neg and χ in the mask.",
        ),
        Panel.of_figure(
            "Brain mask",
            "The outline should follow the brain: no skull inside, no brain outside.",
            figures.mask_outline(np.sqrt(np.square(images.magnitude).sum(0)), mask, affine),
            alt="Outline of the brain mask on the magnitude in three planes.",
        ),
        Panel.of_figure(
            "Unwrapped phase",
            "Each echo should be smooth but for tissue, and steeper than the one before in proportion to its "
            "echo time. Sudden steps of 2π are unwrapping errors.",
            figures.echoes(
                images.unwrapped_rad, affine, images.te_s, title="Unwrapped phase", unit="rad", mask=mask
            ),
            alt="Unwrapped phase of every echo in one axial plane.",
        ),
        Panel.of_figure(
            "Total and local field",
            "The local field should show tissue only; slow shading that is left over from sinuses and ears "
            "is background.",
            figures.planes(
                [
                    figures.Row("Total field", images.total_field_ppm, "ppm", None, "gray"),
                    figures.Row("Local field", images.local_field_ppm, "ppm", (-0.05, 0.05), "gray"),
                ],
                affine,
                mask=mask,
            ),
            alt="Total field and local field in three planes.",
        ),
        Panel.of_figure(
            "Relaxation rates",
            "R2′ is what R2* has beyond R2, 0 at least. Bright R2′ above the sinuses is field inhomogeneity, "
            "not iron.",
            figures.planes(
                [
                    figures.Row(name, rate, "1/s", (0.0, 20.0 if name == "R2′" else 40.0), "gray")
                    for name, rate in rates.items()
                    if rate is not None
                ],
                affine,
                mask=mask,
            ),
            alt="Maps of R2*, R2 where there is a spin echo, and R2′ in three planes.",
        ),
        Panel.of_figure(
            "Susceptibility map (QSM)",
            "Made from the local field alone; compare with χ of the separation above.",
            figures.three_planes(
                _PPB * images.qsm_ppm,
                affine,
                title="QSM",
                unit="ppb",
                window=figures.TOTAL_WINDOW_PPB,
                mask=inside,
            ),
            alt="Susceptibility map in three planes.",
        ),
    ]
    for method, course in convergence.items():
        shown.append(
            Panel.of_figure(
                f"Convergence of {method}",
                f"{course['Iterations']} iterations, "
                + ("converged." if course["Converged"] else "stopped before the tolerance was reached."),
                figures.convergence(course["Change"]),
                alt=f"Relative change of {method} at every iteration.",
            )
        )
    return shown


def region_rows(images: SessionImages, labels: LabelArray, names: Mapping[int, str]) -> list[RegionRow]:
    """Values of every labelled region within the mask of the local field.

    Parameters
    ----------
    images
        Results of the stages.
    labels
        Label of every voxel, 0 outside.
    names
        Label → name; a label without name is shown as its number.
    """
    inside = np.where(images.eroded_mask, labels, 0)
    pos, neg, chi = (
        metrics.roi_statistics(_PPB * chi_map, inside)
        for chi_map in (images.chi_pos_ppm, images.chi_neg_ppm, images.chi_ppm)
    )
    return [
        RegionRow(
            names.get(label, f"label {label}"),
            pos[label].voxels,
            *((stats[label].mean, stats[label].sd) for stats in (pos, neg, chi)),
        )
        for label in sorted(pos)
    ]
