"""Separation and dipole inversion of single maps: paths, nibabel images or arrays in, nibabel images out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import nibabel as nib
import torch

from chisep import methods
from chisep.api.field_strength import field_strength, stated_field_strength
from chisep.api.images import ImageLike, Images
from chisep.api.map_checks import check_maps, check_relaxivity, check_susceptibility
from chisep.api.units import FieldUnits, check_field_units, check_units, field_in_ppm
from chisep.errors import ChisepWarning, InputError
from chisep.io import bids
from chisep.methods.scan_relaxivity import relaxivity_from
from chisep.networks.inference import NetworkOptions, Precision
from chisep.physics.relaxation import pseudo_r2_hz
from chisep.pipeline.result_checks import check_result
from chisep.preprocessing.extent import thin_slab
from chisep.preprocessing.head_size import length_scale
from chisep.preprocessing.relaxivity import AUTO, DrOption, check_dr, relaxivity
from chisep.preprocessing.relaxometry import Rate, pseudo_r2prime
from chisep.preprocessing.scan_relaxivity import ChosenRelaxivity
from chisep.progress import Progress
from chisep.regions.reference import no_reference_facts, reference_of, referenced
from chisep.types import Maps, Volume

IterationProgress = Callable[[int, int], None]
"""Called with the number of finished iterations and their maximum number."""
_R2STAR_SIGMA_HZ = 1.0
"""Assumed noise of R2* without a noise map: small against the uncertainty of a pseudo-R2 (2.5 1/s at 3 T)."""


@dataclass(frozen=True)
class InversionOptions:
    """Options of dipole inversion."""

    method: str = methods.DEFAULTS["chi"]
    """Method of dipole inversion; `chisep methods` lists them."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the field map; if unset: scanner z, from its affine."""
    units: FieldUnits | None = None
    """Unit of the field map, which is converted to ppm; if unset: ppm, which values have to agree with."""
    b0: float | None = None
    """Field strength in tesla, for a field in Hz or rad/s; if unset: from the sidecar of the field map."""
    device: str = "cpu"
    """Device of the computation: cpu, cuda, cuda:1, …"""
    weights: str = ""
    """For a network: weight file, or name of packaged weights; if unset: those of the method."""
    precision: Precision = "auto"
    """Precision of the convolutions of a network; auto: bfloat16 if the hardware supports it."""
    reference: Literal["none", "brain"] | Path = "none"
    """Region whose mean is subtracted from χ: brain (the mask), or a mask on the same grid (NIfTI)."""

    def __post_init__(self) -> None:
        _check_b0(self.b0)
        check_field_units(self.units)
        if isinstance(self.reference, Path) and not self.reference.is_file():
            raise InputError(
                "--reference",
                found=f"{self.reference}, which is no file",
                expected="none, brain, or a mask (NIfTI) on the grid of the field map",
                fix="Check the path; csf needs regions, as `chisep run` has them.",
            )
        methods.find(self.method, "chi")
        methods.config_for(self.method, self.network)

    @property
    def network(self) -> NetworkOptions:
        """Options of the network."""
        return NetworkOptions(weights=self.weights, precision=self.precision)


@dataclass(frozen=True)
class SeparationOptions:
    """Options of source separation."""

    method: str = methods.DEFAULTS["sources"]
    """Separation method; `chisep methods` lists them."""
    b0: float | None = None
    """Field strength in tesla, which D_r and the usual relaxation rates follow from; from the sidecars of the
    maps (MagneticFieldStrength) if left out."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the field map; if unset: scanner z, from its affine."""
    units: FieldUnits | None = None
    """Unit of the field map and its noise, which are converted to ppm; if unset: ppm, which values have to
    agree with."""
    dr: DrOption = ()
    """D_r in 1/s/ppm at this field strength: one number, or two for χ_pos and χ_neg; auto: estimated from R2'
    and the field; if unset: 114·B0/3."""
    device: str = "cpu"
    """Device of the computation: cpu, cuda, cuda:1, …"""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """Options of networks."""

    def __post_init__(self) -> None:
        methods.find(self.method, "sources")
        methods.config_for(self.method, self.network)
        _check_b0(self.b0)
        check_field_units(self.units)
        check_dr(self.dr)


def _check_b0(b0_t: float | None) -> None:
    if b0_t is not None and not bids.LOWEST_B0_T <= b0_t <= bids.HIGHEST_B0_T:
        raise InputError(
            "--b0",
            found=f"{b0_t:g}",
            expected="tesla, e.g. 3",
            fix="Give the field strength of the scan.",
        )


class SeparatedImages(NamedTuple):
    """χ_pos ≥ 0, χ_neg ≥ 0 (a magnitude) and χ = χ_pos − χ_neg in ppm, on the grid of the field map.

    The standard deviations are None for methods that predict none. `d_r` has D_r_pos and D_r_neg in 1/s/ppm;
    if they were estimated from the maps also their 90 % intervals.
    """

    paramagnetic: nib.Nifti1Image
    diamagnetic: nib.Nifti1Image
    total: nib.Nifti1Image
    paramagnetic_sigma: nib.Nifti1Image | None = None
    diamagnetic_sigma: nib.Nifti1Image | None = None
    total_sigma: nib.Nifti1Image | None = None
    d_r: Mapping[str, Any] = MappingProxyType({})


# Long because every input map is an argument and has its line in the docstring.
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
    """Separate paramagnetic and diamagnetic susceptibility (χ-separation).

    Parameters
    ----------
    field
        Local field in ppm, shape (i, j, k).
    r2prime
        R2' in 1/s, same grid; None for methods that read R2*. Methods that use noise maps accept a pseudo-R2'
        (R2* minus a constant R2) if only `r2star` is given.
    mask
        Brain mask, same grid.
    r2star
        R2* in 1/s, same grid, for methods that read it.
    qsm
        Susceptibility map in ppm, same grid; computed from the field if a method needs it and it is None.
    magnitude
        Magnitude image, one or more echoes along the last axis, same grid, for edge weighting and for the
        spatial pattern of an estimated σ of the field (1/magnitude).
    support
        Where sources may be and R2' is known, e.g. the brain mask if `mask` is the smaller valid-field mask;
        `mask` if None.
    field_sigma, r2prime_sigma
        Standard deviations of the error of field (in the unit of the field) and R2' (1/s), 0 where nothing
        was measured, same grid; estimated from the maps if None.
    options
        Method, field strength, B0 direction, units, D_r, device, weights of a network.
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
        If an input cannot be used or one that the method needs is missing, grids differ, values are not of
        the units stated here, the field strength is neither given nor in a sidecar, the method or its
        weights are unknown; a `ResultError` if the result cannot be right.
    """
    options = options or SeparationOptions()
    b0_t = field_strength(options.b0, (field, r2prime, r2star, qsm))
    images = Images(field, voxel_mm)
    maps = Maps(
        field_ppm=images.volume(field, "field"),
        mask=images.mask(mask),
        grid=images.grid(options.b0_dir),
        r2prime_hz=None if r2prime is None else images.volume(r2prime, "r2prime"),
        r2star_hz=None if r2star is None else images.volume(r2star, "r2star"),
        chi_ppm=None if qsm is None else images.volume(qsm, "qsm"),
        magnitude=None if magnitude is None else images.magnitude(magnitude),
        support=None if support is None else images.mask(support),
        field_sigma_ppm=None if field_sigma is None else images.volume(field_sigma, "field_sigma"),
        r2prime_sigma_hz=None if r2prime_sigma is None else images.volume(r2prime_sigma, "r2prime_sigma"),
        b0_t=b0_t,
    )
    maps = _checked(maps, images, options, b0_t)
    chosen = _relaxivity(maps, options, b0_t)
    maps = replace(maps, relaxivity=chosen.relaxivity)
    if methods.METHODS[options.method].uses_noise_maps:
        maps = _with_pseudo_r2(maps, b0_t)
    config = methods.config_for(options.method, options.network)
    sources = methods.separate(maps, options.method, config, device=options.device, progress=_named(progress))
    results = {
        "chi_pos": sources.chi_pos_ppm,
        "chi_neg": sources.chi_neg_ppm,
        "chi": sources.chi_ppm,
        "chi_pos_sigma": sources.chi_pos_sigma_ppm,
        "chi_neg_sigma": sources.chi_neg_sigma_ppm,
        "qsm_sigma": sources.chi_sigma_ppm,
    }
    check_results(results, options.method, any_size=options.units is not None)
    show_warnings(sources.convergence.warnings)
    wrapped = {key: images.wrap(volume) for key, volume in results.items() if volume is not None}
    return SeparatedImages(
        wrapped["chi_pos"],
        wrapped["chi_neg"],
        wrapped["chi"],
        wrapped.get("chi_pos_sigma"),
        wrapped.get("chi_neg_sigma"),
        wrapped.get("qsm_sigma"),
        chosen.facts,
    )


def _relaxivity(maps: Maps, options: SeparationOptions, b0_t: float) -> ChosenRelaxivity:
    """D_r from the options, or estimated from the maps."""
    if options.dr == AUTO:
        chosen = relaxivity_from(maps, b0_t, device=options.device)
        show_warnings(chosen.warnings)
        return chosen
    known = relaxivity(options.dr, b0_t)
    show_warnings(check_relaxivity(known, b0_t))
    return ChosenRelaxivity(known, {"D_r_pos": known.pos_hz_per_ppm, "D_r_neg": known.neg_hz_per_ppm})


def _checked(
    maps: Maps, images: Images, options: SeparationOptions | InversionOptions, b0_t: float | None
) -> Maps:
    """Convert and check maps that a user gave, and show what is doubtful."""
    maps = field_in_ppm(maps, options.units, b0_t)
    show_warnings(images.notes(b0_given=options.b0_dir is not None))
    show_warnings(thin_slab(maps.mask, maps.grid, length_scale(maps.mask, maps.grid)))
    show_warnings(check_units(maps, b0_t, stated=options.units is not None))
    show_warnings(check_maps(maps, b0_t))
    return maps


def _named(progress: IterationProgress | None) -> Progress | None:
    """Adapt a public callback, which takes no text, to the progress protocol."""
    return None if progress is None else lambda _what, done, total: progress(done, total)


def _with_pseudo_r2(maps: Maps, b0_t: float) -> Maps:
    """Add pseudo-R2' (R2* minus a constant R2) with its uncertainty, if there is R2* and no R2'."""
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
    field_sigma: ImageLike | None = None,
    options: InversionOptions | None = None,
    voxel_mm: Sequence[float] | None = None,
    progress: IterationProgress | None = None,
) -> nib.Nifti1Image:
    """Dipole inversion of a local field to a susceptibility map (QSM); arguments as in `separate`.

    Returns
    -------
    nibabel.Nifti1Image
        χ in ppm on the grid of the field map.

    Raises
    ------
    InputError
        If an input cannot be used, grids differ, values are not of the units stated here, or the method or
        its weights are unknown; a `ResultError` if the result cannot be right.
    """
    return referenced_qsm(
        field,
        mask,
        magnitude=magnitude,
        support=support,
        field_sigma=field_sigma,
        options=options,
        voxel_mm=voxel_mm,
        progress=progress,
    )[0]


def referenced_qsm(
    field: ImageLike,
    mask: ImageLike,
    *,
    magnitude: ImageLike | None = None,
    support: ImageLike | None = None,
    field_sigma: ImageLike | None = None,
    options: InversionOptions | None = None,
    voxel_mm: Sequence[float] | None = None,
    progress: IterationProgress | None = None,
) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Dipole inversion as `qsm`; also return reference and chosen settings, as fields of a sidecar."""
    options = options or InversionOptions()
    b0_t = options.b0 or stated_field_strength((field,))
    images = Images(field, voxel_mm)
    maps = Maps(
        field_ppm=images.volume(field, "field"),
        mask=images.mask(mask),
        grid=images.grid(options.b0_dir),
        magnitude=None if magnitude is None else images.magnitude(magnitude),
        support=None if support is None else images.mask(support),
        field_sigma_ppm=None if field_sigma is None else images.volume(field_sigma, "field_sigma"),
        b0_t=b0_t,
    )
    maps = _checked(maps, images, options, b0_t)
    config = methods.config_for(options.method, options.network)
    found = methods.invert(maps, options.method, config, device=options.device, progress=_named(progress))
    chi, facts = found.chi_ppm, no_reference_facts()
    show_warnings(check_susceptibility(chi, maps.mask))
    if options.reference != "none":
        region, name = maps.mask, "brain: the mask"
        if isinstance(options.reference, Path):
            region, name = maps.mask & images.mask(options.reference), f"mask {options.reference.name}"
        reference = reference_of(chi.numpy(), region.numpy(), name)
        chi, facts = (
            torch.from_numpy(referenced(chi.numpy(), reference.value_ppm, chi.numpy() != 0)),
            reference.facts(),
        )
    check_results({"qsm": chi}, options.method, any_size=options.units is not None)
    show_warnings(found.convergence.warnings)
    chosen = found.convergence.chosen
    return images.wrap(chi), facts | ({"Chosen": dict(chosen)} if chosen else {})


def check_results(results: Mapping[str, Volume | None], method: str, *, any_size: bool) -> None:
    """Refuse results that cannot be right, before they are written or returned.

    Parameters
    ----------
    results
        Volumes by their key in the catalogue of outputs.
    method
        Name of the method, for the message.
    any_size
        Whether values may have any size, since the user stated the unit.

    Raises
    ------
    ResultError
        If a result cannot be right.
    """
    for key, volume in results.items():
        if volume is not None:
            check_result(key, volume.numpy(), f"method {method}", any_size=any_size)


def show_warnings(texts: Sequence[str]) -> None:
    """Raise the warnings of results as Python warnings."""
    for text in texts:
        warnings.warn(text, ChisepWarning, stacklevel=4)
