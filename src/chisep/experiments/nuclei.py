"""Nuclei of CIT168 on simulated scans: overlap with the true nuclei, and error of their mean χ_pos."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tyro.conf import Positional

import chisep
from chisep import methods
from chisep.api.maps import InversionOptions, SeparationOptions, qsm, separate
from chisep.errors import InputError
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.texts import markdown
from chisep.io import nifti
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.pipeline.config import FROM_SOURCES
from chisep.progress import Progress
from chisep.regions.atlas import registration
from chisep.regions.cit168 import FIRST_LABEL
from chisep.regions.nuclei import NucleiConfig, nuclei_on_scan
from chisep.report import figures
from chisep.simulation import labelmap
from chisep.simulation.dataset import MAPS, TRUTH, SimulateConfig, simulate
from chisep.types import Affine, Grid

_Map = Float[np.ndarray, "i j k"]
_Mask = Bool[np.ndarray, "i j k"]
_Labels = Int32[np.ndarray, "i j k"]

NUCLEI: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "substantia nigra": ((13, 14, 17, 18), labelmap.NIGRA),
    "red nucleus": ((15, 16), labelmap.RED_NUCLEUS),
    "subthalamic nucleus": ((31, 32), labelmap.SUBTHALAMIC),
    "pallidum externum": ((9, 10), labelmap.PALLIDUM),
    "pallidum internum": ((11, 12), labelmap.PALLIDUM_INTERNUM),
}
"""Numbers in CIT168, and labels of the digital phantom; it does not divide the substantia nigra."""
_GROUPS = (
    ("substantia nigra", "red nucleus", "subthalamic nucleus"),
    ("pallidum externum", "pallidum internum"),
)
"""Nuclei beside each other, whose borders have hardly any contrast."""
_LIMIT_PERCENT = 10.0
_TURN_DEG, _SHIFT_MM = (15.0, 5.0, -10.0), (20.0, -15.0, 30.0)
"""Another position of the head in the scanner."""
_START, _MOVED = "as simulated", "turned and shifted"


@dataclass(frozen=True, kw_only=True)
class NucleiExperimentConfig:
    """Simulated scans, on which nuclei are outlined by R2* and χ."""

    out: Positional[Path]
    """Folder for scans and results; finished heads are kept."""
    labels: tuple[Path, ...]
    """Label maps of the heads."""
    snr: float = 50.0
    """SNR of the map-level simulation."""
    voxel_mm: float = 1.0
    """Voxel edge in mm."""
    seed: int = 1
    """Seed of heads and noise."""
    residual_background_ppb: float = 3.5
    """SD of the field that background removal leaves."""
    inversion: str = FROM_SOURCES
    """Dipole inversion, whose χ drives the registration; `separation`: χ_pos − χ_neg, as in a session."""
    method: str = methods.DEFAULTS["sources"]
    """Separation method, whose χ_pos is read in the nuclei."""
    moved: bool = True
    """Also register each head after it was turned by 19° and shifted by 39 mm in the scanner."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise InputError("labels", found="none", expected="label maps", fix="Give --labels FILE ….")


def nuclei(config: NucleiExperimentConfig, progress: Progress | None = None) -> list[Path]:
    """Outline the nuclei of every head, and compare them with the true ones.

    Parameters
    ----------
    config
        Heads and options.
    progress
        Called with every head.

    Returns
    -------
    list of Path
        regions.md, regions.json, regions.png.

    Raises
    ------
    ChisepError
        If a head cannot be simulated or a file cannot be written.
    """
    make_directory(config.out)
    heads, written = [], list[Path]()
    for done, labels in enumerate(config.labels):
        if progress is not None:
            progress(labels.name, done, len(config.labels))
        heads.append({"Head": _name(labels), **_result(config, labels)})
        found = {
            "GeneratedBy": f"chisep {chisep.__version__}",
            "Options": json.loads(json.dumps(asdict(config) | {"out": None}, default=_name)),
            "Heads": heads,
        }
        written = [
            write_text(config.out / "regions.md", page(found)),
            write_json(config.out / "regions.json", found),
            write_bytes(config.out / "regions.png", figures.png(_figure(found))),
        ]
    if progress is not None:
        progress("nuclei", len(config.labels), len(config.labels))
    return written


def _name(path: object) -> str:
    return path.name.removesuffix("_dseg.nii.gz") if isinstance(path, Path) else str(path)


def _result(config: NucleiExperimentConfig, labels: Path) -> dict[str, Any]:
    """Return the result of one head; that of each position is computed once for the same options."""
    scan = cache(lambda: _simulated(config, labels))
    options = {**asdict(config), "out": None, "labels": labels.name, "moved": None}
    found = {}
    for start in (_START, *([_MOVED] if config.moved else [])):
        key = {"Config": options, "Nuclei": asdict(NucleiConfig()), "Start": start}
        path = config.out / "heads" / f"{_name(labels)}-{start.replace(' ', '-')}.json"
        found[start] = cached_result(path, key, partial(_compared, scan, start))
    return {"Starts": found}


def _compared(scan: Callable[[], _Scan], start: str) -> dict[str, Any]:
    grid = scan().grid
    return scan().compared(grid if start == _START else _moved(grid))


def _simulated(config: NucleiExperimentConfig, labels: Path) -> _Scan:
    """Simulate the maps of a head, and compute χ and χ_pos."""
    raw = config.out / "sessions" / _name(labels) / "bids"
    simulate(
        SimulateConfig(
            out=raw,
            labels=(labels,),
            snr=config.snr,
            voxel_mm=config.voxel_mm,
            seed=config.seed,
            maps_only=True,
            residual_background_ppb=config.residual_background_ppb,
        )
    )
    maps, truth = (raw / folder / "sub-01" / "anat" for folder in (MAPS, TRUTH))
    field, r2prime, r2star = (
        maps / f"sub-01_{name}.nii.gz" for name in ("desc-local_fieldmap", "R2primemap", "R2starmap")
    )
    mask = truth / "sub-01_desc-brain_mask.nii.gz"
    inverted = config.inversion != FROM_SOURCES
    chi = qsm(field, mask, options=InversionOptions(method=config.inversion)) if inverted else None
    options = SeparationOptions(method=config.method)
    sources = separate(field, r2prime, mask, r2star=r2star, qsm=chi, options=options)
    pos, neg = (
        np.asarray(image.dataobj, dtype=np.float32) for image in (sources.paramagnetic, sources.diamagnetic)
    )
    return _Scan(
        nifti.load(r2star).data,
        pos - neg if chi is None else np.asarray(chi.dataobj, dtype=np.float32),
        pos,
        nifti.load(truth / "sub-01_desc-paramagnetic_Chimap.nii.gz").data,
        np.rint(nifti.load(truth / "sub-01_dseg.nii.gz").data).astype(np.int32),
        nifti.load_mask(mask).data,
        nifti.grid_of(nifti.load_mask(mask)),
    )


def _moved(grid: Grid) -> Grid:
    """Turn a head in the scanner about the middle of its grid, and shift it."""
    affine = grid.matrix().astype(np.float64)
    middle = affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + affine[:3, 3]
    turn: Affine = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", _TURN_DEG, degrees=True).as_matrix()
    turn[:3, 3] = middle - turn[:3, :3] @ middle + np.array(_SHIFT_MM)
    return Grid(grid.shape, grid.voxel_mm, affine=turn @ affine)


@dataclass(frozen=True, eq=False)
class _Scan:
    """Maps of a head: R2*, χ and χ_pos as measured, true χ_pos, true labels, brain."""

    r2star_hz: _Map
    chi_ppm: _Map
    chi_pos_ppm: _Map
    true_pos_ppm: _Map
    true_labels: _Labels
    brain: _Mask
    grid: Grid

    def compared(self, grid: Grid) -> dict[str, Any]:
        """Outline the nuclei with the head in a position, and compare them with the true ones."""
        inputs = self.r2star_hz, self.chi_ppm, self.brain, self.brain, grid
        whole = registration(*inputs)
        if whole.to_mni is None:
            raise InputError("atlas", found="no registration", expected="a whole head", fix="Check the head.")
        labels = nuclei_on_scan(*inputs, whole.to_mni)
        made = _numbered(labels - FIRST_LABEL, [ours for ours, _ in NUCLEI.values()])
        true = _numbered(self.true_labels, [labels for _, labels in NUCLEI.values()])
        found = {
            name: self._nucleus(made == number, true == number) for number, name in enumerate(NUCLEI, start=1)
        }
        for group in _GROUPS:
            numbers = {name: list(NUCLEI).index(name) + 1 for name in group}
            ours, theirs = (np.where(np.isin(each, list(numbers.values())), each, 0) for each in (made, true))
            divided_by_truth, outlined_by_truth = _nearest(theirs, ours > 0), _nearest(ours, theirs > 0)
            for name, number in numbers.items():
                for key, region in (("Outline", divided_by_truth), ("Division", outlined_by_truth)):
                    error = _relative_percent(self.true_pos_ppm, region == number, true == number)
                    found[name][f"ErrorOf{key}Percent"] = error
        return found

    def _nucleus(self, made: _Mask, true: _Mask) -> dict[str, float | None]:
        reference = {"made": self.chi_pos_ppm, "true": self.true_pos_ppm}
        errors = {key: _relative_percent(volume, made, true) for key, volume in reference.items()}
        return {
            "Dice": round(2 * float((made & true).sum()) / float(made.sum() + true.sum()), 3),
            "VolumeRatio": round(float(made.sum() / true.sum()), 3),
            "ErrorPercent": errors["made"],
            "ErrorOnTrueMapPercent": errors["true"],
            "ErrorOfMapPercent": _percent(self.chi_pos_ppm[true].mean(), self.true_pos_ppm[true].mean()),
        }


def _numbered(labels: _Labels, groups: Sequence[Sequence[int]]) -> _Labels:
    """Replace labels by the number of the group that has them, from 1; others by 0."""
    numbers = np.zeros_like(labels)
    for number, group in enumerate(groups, start=1):
        numbers[np.isin(labels, group)] = number
    return numbers


def _nearest(labels: _Labels, where: _Mask) -> _Labels:
    """Give voxels the label of the closest voxel that has one."""
    if not labels.any():
        return labels
    index = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    nearest: _Labels = np.where(where, labels[tuple(index)], 0)
    return nearest


def _relative_percent(volume: _Map, made: _Mask, true: _Mask) -> float | None:
    """Mean over one region relative to that over another, less 1, in %."""
    if not made.any():
        return None
    return _percent(volume[made].mean(), volume[true].mean())


def _percent(value: float, reference: float) -> float:
    """Deviation in %."""
    return round(100 * (float(value) / float(reference) - 1), 2)


def _of(found: Mapping[str, Any], start: str, name: str, key: str) -> list[float]:
    """Values of a nucleus in all heads; NaN where it was not found."""
    values = [head["Starts"][start][name][key] for head in found["Heads"]]
    return [float("nan") if value is None else float(value) for value in values]


def _starts(found: Mapping[str, Any]) -> Sequence[str]:
    return list(found["Heads"][0]["Starts"])


_COLUMNS = (
    ("Dice", "Dice", ".2f"),
    ("VolumeRatio", "volume / true volume", ".2f"),
    ("ErrorPercent", "error of the region, %", "+.1f"),
    ("ErrorOnTrueMapPercent", "the same, true map", "+.1f"),
    ("ErrorOfOutlinePercent", "of it the outline", "+.1f"),
    ("ErrorOfDivisionPercent", "of it the division", "+.1f"),
    ("ErrorOfMapPercent", "error of the map, %", "+.1f"),
)
"""Key, heading and format of the columns of the page."""


def _texts(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def page(found: Mapping[str, Any]) -> str:
    """Write the results as Markdown.

    Parameters
    ----------
    found
        Content of regions.json.
    """
    options, heads = found["Options"], [head["Head"] for head in found["Heads"]]
    parts = [
        "# Nuclei of CIT168 on simulated scans\n",
        f"Map-level simulations at {options['voxel_mm']:g} mm, SNR {options['snr']:g}; R2* and χ "
        f"({options['inversion']}) drive the registration, no T1-weighted image. χ_pos is that of "
        f"`{options['method']}`; both sides together.\n",
        "Two errors are told apart. That of the region: mean χ_pos over the nucleus that was outlined, "
        "relative to its mean over the true nucleus, of the same map, measured or true. That of the map: "
        "mean of the measured map over the true nucleus, relative to that of the true map.\n",
        "The error of the region has two causes, each measured alone on the true map. Outline: the nuclei of "
        "the midbrain, or the segments of the pallidum, are outlined together as in the scan, and divided as "
        "in truth (a voxel belongs to the closest nucleus). Division: they are outlined as in truth, and "
        "divided as in the scan.\n",
        "![Dice, and error of the mean χ_pos, of every nucleus.](regions.png)\n",
    ]
    for start in _starts(found):
        rows = [
            [name, *(_texts(_of(found, start, name, key), form) for key, _, form in _COLUMNS)]
            for name in NUCLEI
        ]
        columns = ["nucleus", *(title for _, title, _ in _COLUMNS)]
        parts.append(f"## Head {start}\n\nHeads in order: {', '.join(heads)}.\n\n{markdown(columns, rows)}")
        parts.append(_summary(found, start))
    return "\n".join(parts)


def _summary(found: Mapping[str, Any], start: str) -> str:
    every = np.array([_of(found, start, name, "ErrorPercent") for name in NUCLEI])
    within = int((np.abs(every) <= _LIMIT_PERCENT).sum())
    means = ", ".join(
        f"{name} {mean:+.1f} %" for name, mean in zip(NUCLEI, every.mean(1).tolist(), strict=True)
    )
    outline, division = (
        np.abs([_of(found, start, name, f"ErrorOf{cause}Percent") for name in NUCLEI])
        for cause in ("Outline", "Division")
    )
    beyond = ~(np.abs(every) <= _LIMIT_PERCENT)
    by_division = int((beyond & (division > outline)).sum())
    return (
        f"Error of the region within {_LIMIT_PERCENT:g} %: {within} of {every.size}. Of the others, "
        f"the division causes more in {by_division}, the outline in {int(beyond.sum()) - by_division}. "
        f"Means over the heads: {means}.\n"
    )


def _figure(found: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Dice and errors of every nucleus and head, as simulated."""
    heads = [head["Head"] for head in found["Heads"]]
    return figures.bars(
        [
            figures.Bars(
                title,
                list(NUCLEI),
                {
                    head: [_of(found, _START, n, key)[place] for n in NUCLEI]
                    for place, head in enumerate(heads)
                },
            )
            for title, key in (("Dice", "Dice"), ("Error of mean χ_pos, %", "ErrorPercent"))
        ]
    )
