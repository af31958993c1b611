"""Images of a session, from which its report is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chisep.report.figures.style import EchoArrays, MaskArray, VolumeArray
from chisep.report.viewer import LabelArray
from chisep.types import Affine


@dataclass(frozen=True, eq=False)
class Head:
    """The whole field of view, in which brain outside of the mask can be seen.

    Parameters
    ----------
    affine
        Voxel index to scanner mm.
    magnitude
        Root sum of squares of the gradient echoes.
    mask
        Brain mask.
    """

    affine: Affine
    magnitude: VolumeArray
    mask: MaskArray


@dataclass(frozen=True, eq=False)
class SessionImages:
    """All images of a session on the grid of its gradient echo, cropped around the brain.

    Parameters
    ----------
    head
        What is shown of the whole field of view.
    affine
        Voxel index to scanner mm, of the cropped images.
    te_s
        Echo times of the gradient echo in seconds.
    magnitude
        Root sum of squares of the gradient echoes.
    unwrapped_rad
        Unwrapped phase in radians, shape (echo, i, j, k).
    residual_rad
        RMS over the echoes of measured minus fitted phase in radians; None of one echo.
    quality
        Phase quality, 0 to 1.
    mask, phase_mask, reliable_mask
        Brain mask, phase-quality mask, and mask in which maps can be trusted.
    total_field_ppm, field_sigma_ppm, local_field_ppm, local_field_sigma_ppm
        Fields and their standard deviations in ppm.
    qsm_ppm, chi_pos_ppm, chi_neg_ppm, chi_ppm
        Susceptibilities in ppm; those of the separation are None of one echo.
    spin_echo
        Spin echo resampled to the gradient echo, any scale; None without one.
    r2star_hz, r2_hz, r2prime_hz, r2prime_sigma_hz
        Relaxation rates, and the noise of R2', in 1/s; R2 is None without spin echo, all of them of one echo.
    b1
        Transmit field relative to nominal; None where it was not fitted.
    labels
        Regions, 0 outside them.
    chi_sigmas_ppm
        Predicted uncertainty (standard deviation) of χ_pos and χ_neg, and of χ if it is the QSM, in ppm;
        empty if the method predicts none.
    qsm_of_sources
        Whether the QSM is χ of the separation, less its reference.
    """

    head: Head
    affine: Affine
    te_s: Sequence[float]
    magnitude: VolumeArray
    unwrapped_rad: EchoArrays
    residual_rad: VolumeArray | None
    quality: VolumeArray
    mask: MaskArray
    phase_mask: MaskArray
    reliable_mask: MaskArray
    total_field_ppm: VolumeArray
    field_sigma_ppm: VolumeArray
    local_field_ppm: VolumeArray
    local_field_sigma_ppm: VolumeArray
    spin_echo: VolumeArray | None
    r2star_hz: VolumeArray | None
    r2_hz: VolumeArray | None
    r2prime_hz: VolumeArray | None
    r2prime_sigma_hz: VolumeArray | None
    b1: VolumeArray | None
    qsm_ppm: VolumeArray
    chi_pos_ppm: VolumeArray | None
    chi_neg_ppm: VolumeArray | None
    chi_ppm: VolumeArray | None
    labels: LabelArray
    chi_sigmas_ppm: tuple[VolumeArray, ...] = ()
    qsm_of_sources: bool = False
