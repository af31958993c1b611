"""Background field removal: V-SHARP, PDF or LBV behind one signature."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from chisep.preprocessing.checks import Check
from chisep.preprocessing.field_error import local_field_sigma, reliable_mask, robust_sd
from chisep.preprocessing.lbv import LbvConfig, lbv
from chisep.preprocessing.pdf import PdfConfig, pdf
from chisep.preprocessing.vsharp import FittedSources, LocalField, VsharpConfig, vsharp
from chisep.types import Grid, MaskVolume, Volume

__all__ = [
    "BackgroundConfig",
    "LocalField",
    "VsharpConfig",
    "reliable_mask",
    "remove_background",
    "vsharp",
]

_LOCAL_FIELD_PPB = (25.0, 60.0)
_KNOWN_PART = (0.35, 0.1)
"""Limits for a warning and for a refusal; docs/decisions/0012-scan-checks.md has their measurements."""


@dataclass(frozen=True)
class BackgroundConfig:
    """Settings of background field removal."""

    method: Literal["vsharp", "pdf", "lbv"] = "vsharp"
    """V-SHARP (spherical mean values), PDF (dipoles outside the brain) or LBV (Laplacian boundary values)."""
    vsharp: VsharpConfig = field(default_factory=VsharpConfig)
    """Options of V-SHARP."""
    pdf: PdfConfig = field(default_factory=PdfConfig)
    """Options of PDF."""
    lbv: LbvConfig = field(default_factory=LbvConfig)
    """Options of LBV."""
    leave_out_sinuses: bool = True
    """Whether venous sinuses that the brain mask includes are left out of the mask of the field, so that
    their field is removed. R2* tells them from brain; with one echo there is none, and they stay in."""


def local_field_checks(local: LocalField, brain: MaskVolume) -> tuple[Check, ...]:
    """Judge a local field by its strength and by the part of the brain that it covers.

    Parameters
    ----------
    local
        Result of a background removal.
    brain
        Brain mask, shape (i, j, k).
    """
    values = local.local_field_ppm[local.mask]
    deviation = 1000 * robust_sd(values) if len(values) else math.inf
    return (
        Check(
            "LocalFieldPpb",
            "strength of the local field (robust SD)",
            deviation,
            *_LOCAL_FIELD_PPB,
            "Usual causes: residual background field, wrong phase in a part of the brain, a mask that "
            "includes air or bone.",
            "ppb",
        ),
        Check(
            "KnownPartOfBrain",
            "part of the brain with a known local field",
            float(local.mask.sum() / brain.sum()),
            *_KNOWN_PART,
            "Usual causes: unreliable phase inside the brain, or a rim (rim_mm) that is a large part of a "
            "thin slab or a small head.",
        ),
    )


def remove_background(
    total_field_ppm: Volume,
    mask: MaskVolume,
    grid: Grid,
    config: BackgroundConfig | None = None,
    *,
    sigma_ppm: Volume | None = None,
    brain: MaskVolume | None = None,
    hole_chi_ppm: Volume | None = None,
    fitted: FittedSources | None = None,
) -> LocalField:
    """Background field removal: remove the field of sources outside the brain.

    Parameters
    ----------
    total_field_ppm
        Shape (i, j, k); a constant and what is linear in space do not matter.
    mask
        Where it is known, shape (i, j, k); the field outside is never read.
    grid
        Voxel size and B0 direction.
    config
        Method and its options; defaults where None.
    sigma_ppm
        Standard deviation of the field's noise, shape (i, j, k); 0 where None. PDF weighs by it, and it is a
        part of the local field's error.
    brain
        Brain mask, shape (i, j, k): the field of its part outside `mask` is removed, which is a part of the
        local field's error. As `mask` where None.
    hole_chi_ppm
        χ of strong sources in this part, shape (i, j, k), as `field_error.chi_of_holes` estimates it.
    fitted
        Result of `fitted_sources` of V-SHARP in this mask with these options, if it is there already.

    Returns
    -------
    LocalField
        Local field in ppm and its σ, the valid-field mask, and how much of the brain that mask leaves out.

    Raises
    ------
    InputError
        If the mask is too thin for the method.

    Notes
    -----
    V-SHARP is the default because its error is smallest; `docs/preprocessing.md` has the errors of all
    methods by depth. LBV takes a tenth of the others' time.
    """
    config = config or BackgroundConfig()
    match config.method:
        case "vsharp":
            local = vsharp(total_field_ppm, mask, grid, config.vsharp, fitted)
        case "pdf":
            local = pdf(total_field_ppm, mask, grid, config.pdf, sigma_ppm=sigma_ppm)
        case "lbv":
            local = lbv(total_field_ppm, mask, grid, config.lbv)
    noise = torch.zeros_like(total_field_ppm) if sigma_ppm is None else sigma_ppm
    sigma = local_field_sigma(
        config.method,
        local.local_field_ppm,
        local.mask,
        grid,
        total_field_ppm,
        noise,
        known=mask,
        brain=brain,
        hole_chi_ppm=hole_chi_ppm,
    )
    return replace(local, sigma_ppm=sigma)
