"""The catalogue of a session's outputs: names, units, and what each file is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from chisep.io import bids
from chisep.preprocessing.decay_fit import MAX_RATE_HZ


@dataclass(frozen=True)
class Output:
    """One file of a session's derivatives.

    Parameters
    ----------
    key
        Name in the code.
    description
        Description in one line.
    suffix, entities, extension
        Parts of its BIDS name.
    unit
        As in its sidecar; empty without one.
    sigma
        Key of the map of its standard deviation, if there is one.
    region_column
        Name of its values in the table of regions, with their unit; empty where regions have no values of it.
    limits
        Lowest and highest value that a result of a scan can have, in its unit; None: any finite number.
    """

    key: str
    description: str
    suffix: str
    entities: Mapping[str, str] = field(default_factory=dict)
    extension: str = ".nii.gz"
    unit: str = ""
    sigma: str = ""
    region_column: str = ""
    limits: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """End of its file name, after the session's name, without extension."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix])

    @property
    def in_bids(self) -> bool:
        """Whether BIDS knows files of this name."""
        return not bids.is_ignored(f"sub-01_{self.name}{self.extension}")


_PPM, _RATE = "ppm", "1/s"
_CHI = (-5.0, 5.0)
"""Susceptibility in ppm: iron in a hemorrhage and dense calcifications stay below 3, air is at 9.4."""
_SOURCE = (0.0, _CHI[1])
_FIELD = (-20.0, 20.0)
"""Field in ppm: twice what air next to tissue makes."""
_RATES = (0.0, MAX_RATE_HZ)
_RATE_DIFFERENCE = (-MAX_RATE_HZ, MAX_RATE_HZ)
"""Of R2' = R2* − R2, which noise makes negative where it is small."""
_POSITIVE = (0.0, math.inf)

_ALL = (
    Output("mask", "Brain mask", "mask", {"desc": "brain"}),
    Output(
        "unwrapped",
        "Unwrapped phase of every echo, without receiver offset",
        "MEGRE",
        {"part": "phase", "desc": "unwrapped"},
        unit="rad",
    ),
    Output(
        "residual",
        "RMS over the echoes of measured minus fitted phase",
        "MEGRE",
        {"part": "phase", "desc": "residual"},
        unit="rad",
        limits=_POSITIVE,
    ),
    Output("quality", "Phase quality, 0 to 1", "probseg", {"desc": "phasequality"}, limits=(0.0, 1.0)),
    Output(
        "total_field",
        "Field before background removal",
        "fieldmap",
        {"desc": "total"},
        unit=_PPM,
        limits=_FIELD,
    ),
    Output(
        "field_sigma",
        "Standard deviation of the field",
        "fieldmap",
        {"stat": "std"},
        unit=_PPM,
        limits=_POSITIVE,
    ),
    Output("phase_mask", "Phase-quality mask: where the total field is measured", "mask", {"desc": "phase"}),
    Output(
        "local_field",
        "Field after background removal",
        "fieldmap",
        {"desc": "local"},
        unit=_PPM,
        limits=_FIELD,
    ),
    Output(
        "local_field_sigma",
        "Standard deviation of the local field: noise, and what background removal leaves",
        "fieldmap",
        {"desc": "local", "stat": "std"},
        unit=_PPM,
        limits=_POSITIVE,
    ),
    Output("eroded_mask", "Valid-field mask: where the local field is known", "mask", {"desc": "eroded"}),
    Output(
        "reliable_mask",
        "Reliable mask: where susceptibility maps can be trusted",
        "mask",
        {"desc": "reliable"},
    ),
    Output(
        "transform",
        "Motion between MEGRE and MESE",
        "xfm",
        {"from": "MEGRE", "to": "MESE"},
        extension=".json",
    ),
    Output("spin_echo", "Spin echo, registered to the gradient echo", "MESE", {"desc": "registered"}),
    Output(
        "r2star",
        "R2*, 1/s",
        "R2starmap",
        unit=_RATE,
        sigma="r2star_sigma",
        region_column="r2star_hz",
        limits=_RATES,
    ),
    Output("r2", "R2, 1/s", "R2map", unit=_RATE, sigma="r2_sigma", region_column="r2_hz", limits=_RATES),
    Output(
        "r2prime",
        "R2' = R2* − R2, 1/s; noise makes it negative in some voxels",
        "R2primemap",
        unit=_RATE,
        sigma="r2prime_sigma",
        region_column="r2prime_hz",
        limits=_RATE_DIFFERENCE,
    ),
    Output(
        "r2star_sigma", "Standard deviation of R2*", "R2starmap", {"stat": "std"}, unit=_RATE, limits=_RATES
    ),
    Output("r2_sigma", "Standard deviation of R2", "R2map", {"stat": "std"}, unit=_RATE, limits=_RATES),
    Output(
        "r2prime_sigma", "Standard deviation of R2'", "R2primemap", {"stat": "std"}, unit=_RATE, limits=_RATES
    ),
    Output("b1", "Transmit field relative to nominal", "TB1map", unit="arbitrary", limits=_POSITIVE),
    Output("calibration", "D_r of the scan", "relaxivity", extension=".json"),
    Output("labels", "Regions on the grid of the gradient echo", "dseg", {"desc": "regions"}),
    Output("label_names", "Names of the regions", "dseg", {"desc": "regions"}, extension=".tsv"),
    Output("nuclei", "Iron-rich nuclei of the atlas CIT168", "dseg", {"desc": "nuclei"}),
    Output("nucleus_names", "Names of the nuclei", "dseg", {"desc": "nuclei"}, extension=".tsv"),
    Output("region_values", "Values of every map in every region", "regions", extension=".tsv"),
    Output("region_columns", "Columns of the table of region values", "regions", extension=".json"),
    Output(
        "inversion",
        "Susceptibility from dipole inversion of the local field, where it is not yet the QSM",
        "Chimap",
        {"desc": "inversion"},
        unit=_PPM,
        limits=_CHI,
    ),
    Output(
        "qsm",
        "Susceptibility (QSM): χ_pos − χ_neg, or a dipole inversion; less its reference",
        "Chimap",
        {"desc": "qsm"},
        unit=_PPM,
        sigma="qsm_sigma",
        region_column="qsm_ppb",
        limits=_CHI,
    ),
    Output(
        "qsm_sigma",
        "Standard deviation of the QSM",
        "Chimap",
        {"desc": "qsm", "stat": "std"},
        unit=_PPM,
        limits=_SOURCE,
    ),
    Output(
        "chi_pos",
        "Paramagnetic susceptibility",
        "Chimap",
        {"desc": "paramagnetic"},
        unit=_PPM,
        sigma="chi_pos_sigma",
        region_column="chi_pos_ppb",
        limits=_SOURCE,
    ),
    Output(
        "chi_neg",
        "Diamagnetic susceptibility, as a positive magnitude",
        "Chimap",
        {"desc": "diamagnetic"},
        unit=_PPM,
        sigma="chi_neg_sigma",
        region_column="chi_neg_ppb",
        limits=_SOURCE,
    ),
    Output(
        "chi",
        "Total susceptibility of the separation, χ_pos − χ_neg",
        "Chimap",
        {"desc": "total"},
        unit=_PPM,
        region_column="chi_total_ppb",
        limits=_CHI,
    ),
    Output(
        "chi_pos_sigma",
        "Standard deviation of χ_pos",
        "Chimap",
        {"desc": "paramagnetic", "stat": "std"},
        unit=_PPM,
        limits=_SOURCE,
    ),
    Output(
        "chi_neg_sigma",
        "Standard deviation of χ_neg",
        "Chimap",
        {"desc": "diamagnetic", "stat": "std"},
        unit=_PPM,
        limits=_SOURCE,
    ),
)

BEYOND_RELIABLE_MASK = (
    "Susceptibility maps cover the whole brain mask. Outside the reliable mask (desc-reliable_mask) the "
    "local field is uncertain or unknown: values there follow mostly from relaxation rates and from "
    "neighbours. Region tables tell how much of each region lies in the reliable mask."
)
"""What voxels of maps mean beyond the reliable mask: the one sentence of the report and the README."""

OUTPUTS: Mapping[str, Output] = {output.key: output for output in _ALL}
"""Every output by its key."""

UNITS: Mapping[str, str] = {output.suffix: output.unit for output in _ALL if output.unit}
"""Unit of the images of a suffix."""
