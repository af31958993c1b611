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
        "unrolled χ-sepnet-R2': ten physics steps and passes of one U-net in turn, α from 4",
        "Kim K.W., Seoul National University, 2023",
        crops=CropConfig(size=64),
    ),
    "unrolled": Recipe(
        NetworkConfig(
            WITH_NOISE, SOURCES, proximal=UnrolledProximalConfig(inverse_steps=2, last_steps=2, widest=30.0)
        ),
        "from R2', field and their noise to sources and how sure they are, under any protocol",
        "chisep, docs/decisions/0009-proximal.md",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(),
        loss=LossConfig(passes=0.5, uncertainty=0.1),
    ),
    "unrolled-baseline": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, b0_along_z=True),
        "χ-sepnet-R2' on the heads and lesions of `unrolled`: what that is measured against. A U-net is not "
        "told of protocols: it trains on one, and scans of other B0 directions are turned for it",
        "Kim M. et al., Human Brain Mapping 2025",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(standard_share=1.0, gre_only_share=0.0),
    ),
    "unrolled-gradient": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, unrolled=UnrolledGradientConfig(), b0_along_z=True),
        "unrolled χ-sepnet-R2' (Eq. 2.5) on the heads and lesions of `unrolled`, under one protocol: what "
        "the thesis' design makes of the same data",
        "Kim K.W., Seoul National University, 2023",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(standard_share=1.0, gre_only_share=0.0),
    ),
    "unrolled-qsm": Recipe(
        NetworkConfig(("field", "field_sigma"), ("chi",), proximal=UnrolledProximalConfig()),
        "from the field and its noise to χ and how sure it is, under any protocol",
        "chisep, docs/decisions/0009-proximal.md",
        crops=CropConfig(size=64),
        protocol=ProtocolConfig(),
        loss=LossConfig(passes=0.5, uncertainty=0.1),
    ),
}
