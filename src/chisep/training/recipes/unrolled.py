"""Unrolled χ-sepnet-R2' (Kim K.W., Seoul National University, December 2023), and its successor."""

from chisep.networks.config import MEASURED_ROWS, NOISE, PHI_ROWS, SOURCES, NetworkConfig
from chisep.networks.unrolled_gradient import UnrolledGradientConfig
from chisep.networks.unrolled_proximal import UnrolledProximalConfig
from chisep.training.data import CropConfig
from chisep.training.losses import LossConfig
from chisep.training.protocols import ProtocolConfig
from chisep.training.recipes import Recipe

WITH_NOISE = MEASURED_ROWS + tuple(NOISE[row] for row in MEASURED_ROWS)
"""Rows of the proximal networks, with the noise map of each."""

RECIPES = {
    "thesis-unrolled": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, unrolled=UnrolledGradientConfig(), b0_along_z=True),
        "unrolled χ-sepnet-R2': ten cascades of a gradient step and one shared U-net, α from 4",
        "Kim K.W., Seoul National University, 2023",
        crops=CropConfig(size=64),
    ),
    "unrolled": Recipe(
        NetworkConfig(
            WITH_NOISE, SOURCES, proximal=UnrolledProximalConfig(inverse_steps=2, last_steps=2, widest=30.0)
        ),
        "from R2', field and their noise maps to sources with their uncertainty, for any protocol",
        "chisep, docs/decisions/0009-proximal.md",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(),
        loss=LossConfig(passes=0.5, uncertainty=0.1),
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
        NetworkConfig(("field", "field_sigma"), ("chi",), proximal=UnrolledProximalConfig()),
        "from the field and its noise map to χ with its uncertainty, for any protocol",
        "chisep, docs/decisions/0009-proximal.md",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(),
        loss=LossConfig(passes=0.5, uncertainty=0.1),
    ),
}
