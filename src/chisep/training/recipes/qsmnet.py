"""QSMnet (Yoon 2018, 10.1016/j.neuroimage.2018.06.030): from the local field to χ."""

from chisep.networks.config import NetworkConfig
from chisep.training.data import CropConfig
from chisep.training.losses import LossConfig
from chisep.training.recipes import Recipe

RECIPES = {
    "qsmnet": Recipe(
        NetworkConfig(("field",), ("chi",), b0_along_z=True),
        "from the local field to χ; label: COSMOS",
        "Yoon 2018, 10.1016/j.neuroimage.2018.06.030",
        crops=CropConfig(size=64),
        loss=LossConfig(gradient=0.1, field=0.5, chi=0.0, r2prime=0.0),
    )
}
