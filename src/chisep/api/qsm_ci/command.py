"""Config of the command `qsm-ci`, choice of the stage, and output files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from tyro.conf import Positional

from chisep import methods
from chisep.api.qsm_ci import stages
from chisep.api.qsm_ci.inputs import Inputs
from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.io.files import output_directory

StageName = Literal[
    "field-mapping",
    "bfr",
    "dipole",
    "chi-separation",
    "r2prime-generation",
    "brain-extraction",
    "unwrap+bfr",
    "bfr+dipole",
    "end-to-end",
]
"""Stages and spans of QSM-CI 0.6."""


@dataclass(frozen=True)
class QsmCiConfig:
    """File interface of the public benchmark QSM-CI."""

    input: Positional[Path]
    """Folder with the inputs of the stage: phase, magnitude, mask, totalfield, localfield, r2prime, chimap
    (.nii.gz) and params.json."""
    output: Positional[Path]
    """Folder for the results of the stage, e.g. chimap.nii.gz."""
    stage: StageName | None = None
    """Stage; if unset: the one that reads the most of the files in the input folder."""
    method: str = ""
    """Separation method (chi-separation) or dipole inversion (stages that end in a χ map); `chisep methods`
    lists them. If unset: the default."""


@dataclass(frozen=True)
class Stage:
    """A stage of the benchmark.

    Parameters
    ----------
    run
        Computes the outputs, by their names.
    target
        Kind of the method that it takes; None if it takes none.
    """

    run: Callable[[Inputs, str], stages.Outputs]
    target: methods.Target | None = None


STAGES: Mapping[StageName, Stage] = MappingProxyType(
    {
        "field-mapping": Stage(stages.field_mapping),
        "bfr": Stage(stages.background_removal),
        "dipole": Stage(stages.dipole_inversion, "chi"),
        "chi-separation": Stage(stages.chi_separation, "sources"),
        "r2prime-generation": Stage(stages.r2prime_generation),
        "brain-extraction": Stage(stages.brain_extraction),
        "unwrap+bfr": Stage(stages.unwrapping_and_background_removal),
        "bfr+dipole": Stage(stages.background_removal_and_dipole_inversion, "chi"),
        "end-to-end": Stage(stages.end_to_end, "chi"),
    }
)
_BY_INPUTS: tuple[tuple[frozenset[str], StageName], ...] = (
    (frozenset({"r2prime"}), "chi-separation"),
    (frozenset({"phase"}), "end-to-end"),
    (frozenset({"totalfield", "magnitude"}), "bfr+dipole"),
    (frozenset({"totalfield"}), "bfr"),
    (frozenset({"localfield"}), "dipole"),
    (frozenset({"magnitude", "mask"}), "r2prime-generation"),
    (frozenset({"magnitude"}), "brain-extraction"),
)
"""Files of the input folder, and the stage that they are for; the first that fits."""


def qsm_ci(config: QsmCiConfig) -> list[Path]:
    """Run a stage of the benchmark on an input folder.

    Parameters
    ----------
    config
        Folders, stage, method.

    Returns
    -------
    list of Path
        Written files. Every voxel of the mask has a finite value other than 0.

    Raises
    ------
    InputError
        If the stage cannot be found from the inputs, an input is missing or cannot be used, or the method is
        unknown; nothing is written then.
    """
    inputs = Inputs(config.input)
    name = config.stage or _stage_of(inputs)
    stage = STAGES[name]
    method = _method(config.method, name, stage)
    with output_directory(config.output):
        made = stage.run(inputs, method)
    for text in made.warnings:
        warnings.warn(text, ChisepWarning, stacklevel=2)
    paths = []
    for output, volume in made.volumes.items():
        dtype = np.uint8 if output == "mask" else np.float32
        path = config.output / f"{output}.nii.gz"
        paths.append(nifti.save(path, volume.numpy(), inputs.affine, dtype=dtype))
    return paths


def _stage_of(inputs: Inputs) -> StageName:
    for names, stage in _BY_INPUTS:
        if all(inputs.has(name) for name in names):
            return stage
    raise InputError(
        inputs.folder,
        found="no input of a stage",
        expected="phase, totalfield, localfield, r2prime or magnitude (.nii.gz), as QSM-CI names them",
        fix="Check the folder, or give the stage by --stage.",
    )


def _method(given: str, name: StageName, stage: Stage) -> str:
    """Name of the method, checked before anything is computed."""
    if stage.target is None:
        if given:
            raise InputError(
                "--method",
                found=f"{given}, for the stage {name}",
                expected="no method, since the stage separates and inverts nothing",
                fix="Leave --method out.",
            )
        return ""
    chosen = given or methods.DEFAULTS[stage.target]
    methods.find(chosen, stage.target)
    return chosen
