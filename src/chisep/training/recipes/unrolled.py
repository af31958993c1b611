"""Unrolled χ-sepnet-R2' (Kim K.W., Seoul National University, December 2023), and its successor."""

from dataclasses import replace

from chisep.networks.config import MEASURED_ROWS, NOISE, PHI_ROWS, SOURCES, NetworkConfig
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.networks.unrolled_proximal import UnrolledProximalConfig
from chisep.training.data import CropConfig
from chisep.training.losses import LossConfig
from chisep.training.protocols import ProtocolConfig
from chisep.training.random_contrast import ContrastConfig
from chisep.training.recipes import Recipe

WITH_NOISE = MEASURED_ROWS + tuple(NOISE[row] for row in MEASURED_ROWS)
"""Rows of the proximal networks, with the noise map of each."""

PROTOCOL = ProtocolConfig(
    axial_share=0.7,
    dr_error=0.06,
    erosion_share=0.25,
    background_ppb=2.0,
    rim_ppb=8.0,
    structured_ppb=8.0,
    structured_share=0.7,
    stated_share=0.7,
    shift_voxels=0.25,
    r2_error=0.03,
    gre_only_share=0.15,
    denoised_share=0.5,
    clipped_share=0.2,
    clean_share=0.4,
    clean_snr=3000.0,
    violated_share=0.3,
    sigma_error=0.2,
    contrast=ContrastConfig(share=0.6, labels_share=0.2),
)
"""Errors as large as the pipeline leaves them, with their size in the noise maps; random contrasts."""
_FIELD_PROTOCOL = replace(
    PROTOCOL,
    structured_ppb=9.0,
    clean_share=0.2,
    clean_snr=1000.0,
    sigma_error=0.3,
    contrast=ContrastConfig(share=0.9, flat_share=0.7, labels_share=0.25),
)
"""For χ of the field alone: the field of scans has errors of several ppb, and σ is estimated."""
_LOSS = LossConfig(passes=0.5, uncertainty=0.1, power=0.6)

RECIPES = {
    "thesis-unrolled": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, unrolled=UnrolledGradientConfig(), b0_along_z=True),
        "unrolled χ-sepnet-R2': ten cascades of a gradient step and one shared U-net, α from 4",
        "Kim K.W., Seoul National University, 2023",
        crops=CropConfig(size=64),
    ),
    "unrolled": Recipe(
        NetworkConfig(
            WITH_NOISE,
            SOURCES,
            proximal=UnrolledProximalConfig(
                inverse_steps=2,
                widest=30.0,
                cg_iterations=3,
                last_cg_iterations=6,
                learned_errors=False,
                r2prime_error_ppb=2.0,
                field_error_ppb=0.6,
                data_weight=0.02,
            ),
        ),
        "from R2', field and their noise maps to sources with their uncertainty, for any protocol",
        "chisep, docs/decisions/0019-random-contrasts.md",
        crops=CropConfig(size=64),
        protocol=PROTOCOL,
        loss=_LOSS,
    ),
    "unrolled-baseline": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, b0_along_z=True),
        "χ-sepnet-R2' on the phantoms and lesions of `unrolled`, as its baseline: trained on one protocol, "
        "inputs rotated to B0",
        "Kim M. et al., Human Brain Mapping 2025",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(standard_share=1.0, gre_only_share=0.0),
    ),
    "unrolled-gradient": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, unrolled=UnrolledGradientConfig(), b0_along_z=True),
        "unrolled χ-sepnet-R2' (Eq. 2.5) on the phantoms and lesions of `unrolled`, under one protocol",
        "Kim K.W., Seoul National University, 2023",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(standard_share=1.0, gre_only_share=0.0),
    ),
    "unrolled-qsm": Recipe(
        NetworkConfig(
            ("field", "field_sigma"),
            ("chi",),
            proximal=UnrolledProximalConfig(
                cg_iterations=3,
                last_cg_iterations=5,
                learned_errors=False,
                field_error_ppb=0.6,
                data_weight=0.2,
            ),
        ),
        "from the field and its noise map to χ with its uncertainty, for any protocol",
        "chisep, docs/decisions/0019-random-contrasts.md",
        crops=CropConfig(size=64),
        protocol=_FIELD_PROTOCOL,
        loss=_LOSS,
    ),
}
