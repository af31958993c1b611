"""The command `qsm-ci`: the file contract of the public benchmark QSM-CI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from chisep.api.maps import SeparationOptions, separate
from chisep.errors import InputError
from chisep.io import nifti
from chisep.io.files import output_directory
from chisep.preprocessing.relaxivity import AUTO


@dataclass(frozen=True)
class QsmCiConfig:
    """File contract of the public benchmark QSM-CI, stage chi-separation."""

    input: Positional[Path]
    """Folder with localfield, r2prime, mask (.nii.gz), params.json, and perhaps chimap and magnitude."""
    output: Positional[Path]
    """Folder for chi-para.nii.gz and chi-dia.nii.gz."""
    method: str = "iterative"
    """Separation method; `chisep methods` lists them."""


def qsm_ci(config: QsmCiConfig) -> list[Path]:
    """Separate the inputs of a QSM-CI run, with D_r estimated from them.

    Raises
    ------
    InputError
        If an input is missing or cannot be used.
    """
    with output_directory(config.output):
        options = _qsm_ci_options(config)
        chi, magnitude = (config.input / f"{name}.nii.gz" for name in ("chimap", "magnitude"))
        images = separate(
            config.input / "localfield.nii.gz",
            config.input / "r2prime.nii.gz",
            config.input / "mask.nii.gz",
            qsm=chi if chi.exists() else None,
            magnitude=magnitude if magnitude.exists() else None,
            options=options,
        )
    named = (("chi-para", images.paramagnetic), ("chi-dia", images.diamagnetic))
    return [
        nifti.save(config.output / f"{name}.nii.gz", np.asanyarray(i.dataobj), i.affine) for name, i in named
    ]


def _qsm_ci_options(config: QsmCiConfig) -> SeparationOptions:
    file = config.input / "params.json"
    try:
        params = json.loads(file.read_text())
        i, j, k = (float(b) for b in params["B0_dir"])
        # The contract states no D_r.
        return SeparationOptions(method=config.method, b0=float(params["B0"]), b0_dir=(i, j, k), dr=AUTO)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            file,
            found=f"no usable parameters ({error!r})",
            expected="JSON with B0 (T) and B0_dir (three numbers)",
            fix="Write params.json as the QSM-CI contract says.",
        ) from error
