"""Unrolled χ-sepnet-R2' (Kim K.W., Seoul National University, December 2023), and its successor."""

from chisep.models.network import MEASURED_ROWS, PHI_ROWS, SOURCES, NetworkConfig
from chisep.models.proximal import ProximalConfig
from chisep.models.unrolled import UnrolledConfig
from chisep.training.data import CropConfig
from chisep.training.recipes import Recipe

RECIPES = {
    "thesis-unrolled": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, unrolled=UnrolledConfig(), b0_along_z=True),
        "unrolled χ-sepnet-R2': ten physics steps and passes of one U-net in turn, α from 4",
        "Kim K.W., Seoul National University, 2023",
        crops=CropConfig(size=64),
    ),
    "proximal": Recipe(
        NetworkConfig(MEASURED_ROWS, SOURCES, proximal=ProximalConfig(), b0_along_z=True),
        "from R2' and field to sources: three exact data steps and U-nets in turn",
        "chisep, docs/networks.md",
        crops=CropConfig(size=64),
    ),
}
