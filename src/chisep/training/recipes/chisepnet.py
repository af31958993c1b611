"""χ-sepnet and R2PRIMEnet (Kim M. et al., Human Brain Mapping 2025): maps to sources in a single pass."""

from chisep.networks.config import PHI_ROWS, SOURCES, NetworkConfig
from chisep.training.data import CropConfig
from chisep.training.losses import LossConfig
from chisep.training.recipes import Recipe

_REFERENCE = "Kim M. et al., Human Brain Mapping 2025"
_CROPS = CropConfig(size=64)

RECIPES = {
    "r2s": Recipe(
        NetworkConfig(("r2star",), ("r2prime",)),
        "R2PRIMEnet, from R2* to R2': the first half of χ-sepnet-R2*",
        _REFERENCE,
        crops=_CROPS,
        loss=LossConfig(field=0.0, chi=0.0, r2prime=0.0),
    ),
    "thesis-baseline": Recipe(
        NetworkConfig(PHI_ROWS, SOURCES, b0_along_z=True),
        "χ-sepnet-R2', the thesis' baseline",
        _REFERENCE,
        crops=_CROPS,
    ),
    "thesis-r2s-direct": Recipe(
        NetworkConfig(("qsm", "r2star", "field"), SOURCES, b0_along_z=True),
        "χ-sepnet with R2* in the place of R2'",
        _REFERENCE,
        crops=_CROPS,
    ),
}
