"""The commands on single maps, for Python: NIfTI paths, nibabel images or arrays in, nibabel images out."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tyro.conf import Positional

import chisep
from chisep import methods, metrics
from chisep.errors import ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import output_directory, write_json
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions, Precision
from chisep.networks.weights import WeightsConfig
from chisep.physics.relaxation import pseudo_r2_hz
from chisep.preprocessing.relaxivity import relaxivity
from chisep.preprocessing.relaxometry import Rate, pseudo_r2prime
from chisep.progress import Progress
from chisep.types import Grid, Maps

ImageLike = str | Path | NDArray[Any] | nib.spatialimages.SpatialImage
"""A path of a NIfTI file, a nibabel image, or an array (then give `voxel_mm`)."""

IterationProgress = Callable[[int, int], None]
"""Called with the number of finished iterations and their maximum number."""

SOURCE_FILES = {
    "paramagnetic": "desc-paramagnetic_Chimap.nii.gz",
    "diamagnetic": "desc-diamagnetic_Chimap.nii.gz",
    "total": "desc-total_Chimap.nii.gz",
}
"""File names of χ_pos, χ_neg and χ; names before `desc` (subject, session) may precede them."""
SIGMA_FILES = {
    "paramagnetic": "desc-paramagnetic_stat-std_Chimap.nii.gz",
    "diamagnetic": "desc-diamagnetic_stat-std_Chimap.nii.gz",
}
"""File names of the standard deviations of χ_pos and χ_neg, of methods that tell them."""


_R2STAR_SIGMA_HZ = 1.0
"""Noise of an R2* that comes without: little beside what an assumed R2 is uncertain by (2.5 1/s at 3 T)."""
_SHIPPED_TRUST = "trained on simulated subjects, not validated in vivo"
_OTHER_TRUST = "not part of chisep; whoever trained them knows on whom, and whether they were validated"


@dataclass(frozen=True)
class InversionOptions:
    """How one susceptibility map is made."""

    method: str = methods.DEFAULTS["chi"]
    """Method of dipole inversion; `chisep methods` lists them."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the field map; from its affine (scanner z) if left out."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, …"""
    weights: str = ""
    """For a network: file of other weights, or name of shipped ones; the method's own if left out."""
    precision: Precision = "auto"
    """Of a network's convolutions; auto: bfloat16 where the hardware has it."""

    def __post_init__(self) -> None:
        methods.find(self.method, "chi")
        methods.config_for(self.method, self.network)

    @property
    def network(self) -> NetworkOptions:
        """The same, as networks take it."""
        return NetworkOptions(weights=self.weights, precision=self.precision)


@dataclass(frozen=True)
class SeparationOptions:
    """How sources are separated."""

    method: str = methods.DEFAULTS["sources"]
    """Separation method; `chisep methods` lists them."""
    b0: float = 3.0
    """Field strength in tesla; sets the default of D_r."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the field map; from its affine (scanner z) if left out."""
    dr: tuple[float, ...] = ()
    """D_r in 1/s/ppm at this field strength: one number, or two for χ_pos and χ_neg. Default 114·B0/3."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, …"""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """For methods that are networks."""

    def __post_init__(self) -> None:
        methods.find(self.method, "sources")
        methods.config_for(self.method, self.network)
        if not 0.01 <= self.b0 <= 25:
            raise InputError(
                "--b0",
                found=f"{self.b0:g}",
                expected="tesla, e.g. 3",
                fix="Give the field strength of the scan.",
            )
        if len(self.dr) > 2:
            raise InputError(
                "--dr",
                found=f"{len(self.dr)} numbers",
                expected="one, or two for χ_pos and χ_neg",
                fix="Give D_r in 1/s/ppm.",
            )


class SeparatedImages(NamedTuple):
    """χ_pos ≥ 0, χ_neg ≥ 0 (a magnitude) and χ = χ_pos − χ_neg in ppm, on the grid of the field map.

    The standard deviations of the first two are None for methods that do not tell them.
    """

    paramagnetic: nib.Nifti1Image
    diamagnetic: nib.Nifti1Image
    total: nib.Nifti1Image
    paramagnetic_sigma: nib.Nifti1Image | None = None
    diamagnetic_sigma: nib.Nifti1Image | None = None


def separate(
    field: ImageLike,
    r2prime: ImageLike | None,
    mask: ImageLike,
    *,
    r2star: ImageLike | None = None,
    qsm: ImageLike | None = None,
    magnitude: ImageLike | None = None,
    support: ImageLike | None = None,
    field_sigma: ImageLike | None = None,
    r2prime_sigma: ImageLike | None = None,
    options: SeparationOptions | None = None,
    voxel_mm: Sequence[float] | None = None,
    progress: IterationProgress | None = None,
) -> SeparatedImages:
    """Separate paramagnetic from diamagnetic susceptibility.

    Parameters
    ----------
    field
        Local field in ppm, shape (i, j, k).
    r2prime
        R2' in 1/s, same grid; None for methods that take R2*. A method that knows how uncertain R2' is takes
        R2* minus one R2 of the whole brain instead where only `r2star` is given.
    mask
        Brain mask, same grid.
    r2star
        R2* in 1/s, same grid, for methods that take it.
    qsm
        Susceptibility map in ppm, same grid; made from the field where a method needs it and it is missing.
    magnitude
        Magnitude image, one or more echoes along the last axis, same grid; guides edges.
    support
        Where sources may be and R2' is known, e.g. the brain where `mask` is what background removal left of
        it; `mask` if None.
    field_sigma, r2prime_sigma
        Standard deviations of the noise of field (ppm) and R2' (1/s), 0 where nothing was measured, same
        grid; estimated from the maps if None.
    options
        Method, field strength, B0 direction, D_r, device, weights of a network.
    voxel_mm
        Voxel edges in mm, for arrays.
    progress
        Called with the number of finished iterations and their maximum number.

    Returns
    -------
    SeparatedImages
        Three nibabel images.

    Raises
    ------
    InputError
        If an input cannot be used or one that the method needs is missing, grids differ, or the method or
        its weights are unknown.
    """
    options = options or SeparationOptions()
    images = _Images(field, voxel_mm)
    maps = Maps(
        field_ppm=images.volume(field, "field"),
        mask=images.mask(mask),
        grid=images.grid(options.b0_dir),
        relaxivity=relaxivity(options.dr, options.b0),
        r2prime_hz=None if r2prime is None else images.volume(r2prime, "r2prime"),
        r2star_hz=None if r2star is None else images.volume(r2star, "r2star"),
        chi_ppm=None if qsm is None else images.volume(qsm, "qsm"),
        magnitude=None if magnitude is None else images.magnitude(magnitude),
        support=None if support is None else images.mask(support),
        field_sigma_ppm=None if field_sigma is None else images.volume(field_sigma, "field_sigma"),
        r2prime_sigma_hz=None if r2prime_sigma is None else images.volume(r2prime_sigma, "r2prime_sigma"),
    )
    _question_units(maps)
    if methods.METHODS[options.method].uses_noise_maps:
        maps = _with_pseudo_r2(maps, options.b0)
    config = methods.config_for(options.method, options.network)
    sources = methods.separate(maps, options.method, config, device=options.device, progress=_named(progress))
    _show(sources.convergence.warnings)
    return SeparatedImages(
        *(images.wrap(x) for x in (sources.chi_pos_ppm, sources.chi_neg_ppm, sources.chi_ppm)),
        *(
            None if sigma is None else images.wrap(sigma)
            for sigma in (sources.chi_pos_sigma_ppm, sources.chi_neg_sigma_ppm)
        ),
    )


def _named(progress: IterationProgress | None) -> Progress | None:
    """Adapt a public callback, which takes no name of the work, to the progress protocol."""
    return None if progress is None else lambda _what, done, total: progress(done, total)


def _with_pseudo_r2(maps: Maps, b0_t: float) -> Maps:
    """Make R2' of R2* where there is no R2', with the uncertainty of an R2 that was not measured."""
    if maps.r2prime_hz is not None or maps.r2star_hz is None:
        return maps
    warnings.warn(
        f"R2' is R2* minus a pseudo-R2 of {pseudo_r2_hz(b0_t):.1f} 1/s everywhere, an assumption",
        ChisepWarning,
        stacklevel=3,
    )
    noise = _R2STAR_SIGMA_HZ * maps.sources_mask.to(maps.r2star_hz.dtype)
    of_difference = pseudo_r2prime(Rate(maps.r2star_hz, noise), b0_t)
    return replace(maps, r2prime_hz=of_difference.rate_hz, r2prime_sigma_hz=of_difference.sigma_hz)


def qsm(
    field: ImageLike,
    mask: ImageLike,
    *,
    magnitude: ImageLike | None = None,
    support: ImageLike | None = None,
    options: InversionOptions | None = None,
    voxel_mm: Sequence[float] | None = None,
    progress: IterationProgress | None = None,
) -> nib.Nifti1Image:
    """Make a susceptibility map (QSM) from a local field; arguments as in `separate`.

    Returns
    -------
    nibabel.Nifti1Image
        χ in ppm on the grid of the field map.

    Raises
    ------
    InputError
        If an input cannot be used, grids differ, or the method or its weights are unknown.
    """
    options = options or InversionOptions()
    images = _Images(field, voxel_mm)
    maps = Maps(
        field_ppm=images.volume(field, "field"),
        mask=images.mask(mask),
        grid=images.grid(options.b0_dir),
        magnitude=None if magnitude is None else images.magnitude(magnitude),
        support=None if support is None else images.mask(support),
    )
    _question_units(maps)
    config = methods.config_for(options.method, options.network)
    found = methods.invert(maps, options.method, config, device=options.device, progress=_named(progress))
    _show(found.convergence.warnings)
    return images.wrap(found.chi_ppm)


def _show(texts: Sequence[str]) -> None:
    """Show what results warn of to a caller of the Python functions."""
    for text in texts:
        warnings.warn(text, ChisepWarning, stacklevel=3)


class _Images:
    """Reads images onto the grid of the first one and wraps results the same way."""

    def __init__(self, reference: ImageLike, voxel_mm: Sequence[float] | None) -> None:
        self._voxel_mm = voxel_mm
        self._reference = self._read(reference, "field")

    def _read(self, image: ImageLike, name: str, ndim: int = 3) -> nifti.Image:
        if isinstance(image, str | Path):
            return nifti.load(image, ndim=ndim)
        if isinstance(image, np.ndarray):
            if self._voxel_mm is None:
                raise InputError(
                    name,
                    found="an array without a voxel size",
                    expected="voxel_mm=(…, …, …)",
                    fix="Give the voxel edges in mm.",
                )
            image = nib.Nifti1Image(image.astype(np.float32), np.diag([*self._voxel_mm, 1.0]))
        return nifti.from_nibabel(image, source=name, ndim=ndim)

    def _same_grid(self, image: nifti.Image) -> nifti.Image:
        nifti.require_same_grid(self._reference, image)
        return image

    def grid(self, b0_direction: Sequence[float] | None) -> Grid:
        return nifti.grid_of(self._reference, b0_direction)

    def volume(self, image: ImageLike, name: str) -> Tensor:
        return torch.from_numpy(self._same_grid(self._read(image, name)).data)

    def mask(self, image: ImageLike) -> Tensor:
        read = self._same_grid(self._read(image, "mask"))
        return torch.from_numpy(nifti.checked_mask(read.data > 0.5, read.affine, read.source).data)

    def magnitude(self, image: ImageLike) -> Tensor:
        """Root of the sum of squares over the echoes, if there is more than one."""
        echoes = (
            len(image.shape) == 4 if not isinstance(image, str | Path) else nifti.number_of_axes(image) == 4
        )
        read = self._same_grid(self._read(image, "magnitude", ndim=4 if echoes else 3))
        return torch.from_numpy(np.sqrt(np.square(read.data).sum(-1)) if echoes else read.data)

    def wrap(self, volume: Tensor) -> nib.Nifti1Image:
        return nifti.to_nibabel(volume.numpy(), self._reference.affine)


def _question_units(maps: Maps) -> None:
    """Warn where values are far from what their unit makes likely."""
    field_size = _typical(maps.field_ppm, maps)
    if field_size > 2:
        warnings.warn(
            f"the field is typically {field_size:.3g} ppm in the mask: is it in Hz or radians, or not yet "
            "free of background? chisep wants the local field in ppm",
            ChisepWarning,
            stacklevel=3,
        )
    if maps.chi_ppm is not None and _typical(maps.chi_ppm, maps) > 2:
        warnings.warn(
            "the susceptibility map is typically above 2 ppm in the mask: is it in ppb?",
            ChisepWarning,
            stacklevel=3,
        )
    # R2* of a brain is about 20 1/s at 3 T, R2' a few 1/s.
    for name, rate, lowest in (("R2'", maps.r2prime_hz, 0.3), ("R2*", maps.r2star_hz, 1.0)):
        if rate is None:
            continue
        if _typical(rate, maps) < lowest:
            warnings.warn(
                f"{name} is typically below {lowest:g} 1/s in the mask: is it in 1/ms? chisep wants 1/s",
                ChisepWarning,
                stacklevel=3,
            )
        negative = int(torch.count_nonzero(rate[maps.mask] < 0))
        if negative:
            warnings.warn(
                f"{name} is negative in {negative} voxels of the mask; the sources stay 0 at least",
                ChisepWarning,
                stacklevel=3,
            )


def _typical(volume: Tensor, maps: Maps) -> float:
    """Root mean square within the mask."""
    return float(volume[maps.mask].square().mean().sqrt())


@dataclass(frozen=True)
class SeparateConfig:
    """Single maps on one grid."""

    field: Path
    """Local field in ppm (NIfTI)."""
    mask: Path
    """Brain mask (NIfTI)."""
    out: Path
    """Folder for desc-paramagnetic_, desc-diamagnetic_ and desc-total_Chimap.nii.gz (ppm)."""
    options: SeparationOptions
    """How."""
    r2prime: Path | None = None
    """R2' in 1/s (NIfTI); not read by methods that take R2*."""
    r2star: Path | None = None
    """R2* in 1/s (NIfTI), for methods that take it."""
    qsm: Path | None = None
    """Susceptibility map in ppm (NIfTI), if there is one."""
    magnitude: Path | None = None
    """Magnitude image, 3-D or multi-echo 4-D (NIfTI), to guide edges."""
    support: Path | None = None
    """Brain mask (NIfTI) where MASK is what background removal left of it: the rim's sources act inside."""
    field_sigma: Path | None = None
    """Standard deviation of the field's noise in ppm (NIfTI), for methods that weigh by it."""
    r2prime_sigma: Path | None = None
    """Standard deviation of the noise of R2' in 1/s (NIfTI), for methods that weigh by it."""


def separate_files(config: SeparateConfig, progress: IterationProgress | None = None) -> list[Path]:
    """Run `separate` on files and write the maps with their sidecars.

    Raises
    ------
    InputError
        As `separate`, and if the output folder cannot be written.
    """
    with output_directory(config.out):
        images = separate(
            config.field,
            config.r2prime,
            config.mask,
            r2star=config.r2star,
            qsm=config.qsm,
            magnitude=config.magnitude,
            support=config.support,
            field_sigma=config.field_sigma,
            r2prime_sigma=config.r2prime_sigma,
            options=config.options,
            progress=progress,
        )
    d_r = relaxivity(config.options.dr, config.options.b0)
    facts = {
        "Method": config.options.method,
        **_weights(config.options.method, config.options.network, chi_given=config.qsm is not None),
        "D_r_pos": d_r.pos_hz_per_ppm,
        "D_r_neg": d_r.neg_hz_per_ppm,
        "MagneticFieldStrength": config.options.b0,
        "B0Direction": list(
            nifti.b0_direction_of(images.total.affine)
            if config.options.b0_dir is None
            else config.options.b0_dir
        ),
    }
    named = dict(zip((*SOURCE_FILES.values(), *SIGMA_FILES.values()), images, strict=True))
    return [_write(config.out / name, image, facts) for name, image in named.items() if image is not None]


@dataclass(frozen=True)
class QsmConfig:
    """A field map and where its susceptibility goes."""

    field: Path
    """Local field in ppm (NIfTI)."""
    mask: Path
    """Brain mask (NIfTI)."""
    out: Path
    """File to write: χ in ppm (.nii or .nii.gz)."""
    options: InversionOptions
    """How."""
    magnitude: Path | None = None
    """Magnitude image, 3-D or multi-echo 4-D (NIfTI), to guide edges."""
    support: Path | None = None
    """Brain mask (NIfTI) where MASK is what background removal left of it: the rim's sources act inside."""

    def __post_init__(self) -> None:
        if not self.out.name.endswith((".nii", ".nii.gz")):
            raise InputError(
                "--out",
                found=str(self.out),
                expected="a name that ends in .nii or .nii.gz",
                fix="Add the ending.",
            )


def qsm_files(config: QsmConfig, progress: IterationProgress | None = None) -> Path:
    """Run `qsm` on files and write the map with its sidecar.

    Raises
    ------
    InputError
        As `qsm`, and if the output cannot be written.
    """
    with output_directory(config.out.parent):
        image = qsm(
            config.field,
            config.mask,
            magnitude=config.magnitude,
            support=config.support,
            options=config.options,
            progress=progress,
        )
    direction = (
        nifti.b0_direction_of(image.affine) if config.options.b0_dir is None else config.options.b0_dir
    )
    options = config.options
    used = _weights(options.method, options.network, chi_given=False)
    return _write(config.out, image, {"Method": options.method, **used, "B0Direction": list(direction)})


def _weights(method: str, options: NetworkOptions, *, chi_given: bool) -> dict[str, Any]:
    used = methods.weights_used(method, options, chi_given=chi_given)
    return {"Weights": used} if used else {}


def _write(path: Path, image: nib.Nifti1Image, facts: dict[str, Any]) -> Path:
    write_json(
        bids.sidecar_of(path), {"Units": "ppm", **facts, "SoftwareVersion": f"chisep {chisep.__version__}"}
    )
    return nifti.save(path, np.asanyarray(image.dataobj), image.affine)


def weight_cards(config: WeightsConfig) -> dict[str, dict[str, Any]]:
    """Say all that is known of the shipped weights, or of one file.

    Returns
    -------
    dict
        By name: the header of the weights (network, statistics, recipe, training data, metrics, …), number
        of parameters, size in bytes, and how far the weights may be trusted.

    Raises
    ------
    InputError
        If there are no such weights, or they cannot be read.
    """
    known = network_weights.shipped()
    cards = {}
    for name, header in network_weights.describe(config).items():
        path = network_weights.find_weights(config.name or name)
        network = network_weights.load(path).network
        cards[name] = {
            **header,
            "parameters": sum(tensor.numel() for tensor in network.parameters()),
            "bytes": path.stat().st_size,
            "trust": _SHIPPED_TRUST if path == known.get(name) else _OTHER_TRUST,
        }
    return cards


@dataclass(frozen=True)
class EvaluateConfig:
    """Separated maps and what they should have been."""

    pred: Path
    """Folder with the maps to judge (desc-…_Chimap.nii.gz)."""
    truth: Path
    """Folder with the true maps, named alike."""
    mask: Path
    """Where to judge (NIfTI)."""


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, float | None]]:
    """Judge every map that both folders have.

    Returns
    -------
    dict
        For paramagnetic, diamagnetic and total: all metrics by name; None where one is not defined.

    Raises
    ------
    InputError
        If no map is in both folders, one is there twice, or grids differ.
    """
    mask = nifti.load_mask(config.mask)
    scores: dict[str, dict[str, float | None]] = {}
    for source, name in SOURCE_FILES.items():
        paths = [_only(folder, name) for folder in (config.pred, config.truth)]
        if None in paths:
            continue
        pred, truth = (nifti.load(path) for path in paths if path)
        for image in (truth, mask):
            nifti.require_same_grid(pred, image)
        values = metrics.evaluate(pred.data, truth.data, mask.data)
        scores[source] = {key: value if math.isfinite(value) else None for key, value in values.items()}
    if not scores:
        raise InputError(
            config.pred,
            found="no map that is also in " + str(config.truth),
            expected=", ".join(SOURCE_FILES.values()),
            fix="Give the folders that hold the maps of one subject.",
        )
    return scores


def _only(folder: Path, name: str) -> Path | None:
    """Return the one file of that name, possibly after subject and session, in a folder or below it."""
    found = sorted(folder.rglob(f"*{name}"))
    if len(found) > 1:
        raise InputError(
            folder,
            found=f"{len(found)} files *{name}",
            expected="one",
            fix="Give the folder of one subject.",
        )
    return found[0] if found else None


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
    """Separate the inputs of a QSM-CI run.

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
        return SeparationOptions(method=config.method, b0=float(params["B0"]), b0_dir=(i, j, k))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            file,
            found=f"no usable parameters ({error!r})",
            expected="JSON with B0 (T) and B0_dir (three numbers)",
            fix="Write params.json as the QSM-CI contract says.",
        ) from error
