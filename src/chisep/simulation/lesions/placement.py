"""Lesions: what patients have and healthy heads lack.

A lesion is a star-shaped body, an ellipsoid whose radius waves with direction, made of parts between
given radii: core, rim, oedema. Each part has a material that replaces or changes the tissue it lies in.
Parts are sampled finer than the voxels and averaged, so a lesion has soft edges and holds the same
amount of iron or calcium whatever the voxels are.

Which source a lesion changes follows pathology: deoxyhaemoglobin and haemosiderin are paramagnetic, calcium
is diamagnetic (Schweser 2010, 10.1118/1.3481505); plaques of multiple sclerosis lose myelin, some keep a
rim of iron (Absinta 2016, 10.1172/JCI86198); the substantia nigra gains iron in Parkinson's disease, and
its nigrosome 1 is no longer told from the rest (Schwarz 2014, 10.1371/journal.pone.0093814).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import avg_pool3d
from tyro.conf import arg

from chisep.errors import ChisepWarning, InputError
from chisep.physics.signal import r2prime_of_sources
from chisep.simulation import anatomy
from chisep.simulation.tissue import REGIONS, LabelVolume, Tissue

Kind = Literal["hemorrhage", "calcification", "microbleed", "cavernoma", "plaque"]
"""Lesions that have a shape."""
Place = Literal["white", "deep-grey", "cortex", "lobar", "deep", "periventricular"]
"""Where a lesion's centre may lie; lobar and deep as microbleeds are rated (Gregoire 2009, MARS)."""
Millimetres = tuple[float, float, float]
"""Position in world coordinates, RAS+."""
Vector = NDArray[np.float64]
"""Three numbers, or rows of three."""

_R2_OF_IRON_HZ_PER_PPM = 60.0
"""R2 that 1 ppm of χ_pos adds at 3 T: half of what deep grey matter shows, since the iron of blood is
clumped, which dephases more than it relaxes."""
_FINE_STEPS = 16
"""Samples across the diameter of a lesion, at least: its volume is then right to 1 %."""
_MOST_TRIES = 200
"""Centres that are tried before a lesion is left out."""
_DRAWN_VOXELS = 8192
"""Voxels that are looked at for centres."""
_BESIDE_MM = 3.0
"""Gap to the ventricle up to which a plaque counts as periventricular."""


# ---- options -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Material:
    """What a part of a lesion is made of: its own sources, and what it leaves of the tissue's."""

    chi_pos_ppb: float = 0.0
    chi_neg_ppb: float = 0.0
    keep_pos: float = 0.0
    keep_neg: float = 0.0
    r2_ratio: float = 1.0
    """R2 over that of the tissue before, without what iron adds."""
    t1_s: float = 1.2
    m0: float = 0.8


@dataclass(frozen=True)
class _Part:
    """A shell of a lesion, between two radii relative to its border."""

    inner: float
    outer: float
    material: _Material


@dataclass(frozen=True, kw_only=True)
class LesionConfig:
    """Where a lesion lies, how large and what shape it is; its kinds say what it is made of.

    Raises
    ------
    InputError
        If an option is out of its range.
    """

    size_mm: float = 8.0
    """Diameter in mm of the sphere of equal volume."""
    strength_ppb: float = 300.0
    """χ_pos or χ_neg in ppb where the lesion is densest; what the label of a solid lesion reads."""
    position_mm: Millimetres | None = None
    """Centre in world coordinates in mm (RAS+); drawn within `place` if not given."""
    place: Place = "white"
    """Tissue that the centre lies in."""
    elongation: float = 1.3
    """Longest over shortest axis."""
    irregularity: float = 0.12
    """Standard deviation of the radius over all directions, relative to that of the ellipsoid."""
    texture: float = 0.15
    """Amplitude of the variation of χ inside, relative; 0.5 at most. The mean over the label stays."""

    kind: ClassVar[Kind]
    """Name of the kind."""
    texture_frequencies: ClassVar[tuple[float, float]] = (3.0, 8.0)
    """Lowest and highest frequency of the texture in rad per radius."""
    typical_size_mm: ClassVar[tuple[float, float]] = (1.0, 25.0)
    """Range that random sizes of this kind are drawn from."""
    typical_strength_ppb: ClassVar[tuple[float, float]] = (20.0, 1500.0)
    """Range that random strengths of this kind are drawn from."""

    def __post_init__(self) -> None:
        _check_range("lesion size_mm", self.size_mm, 0.5, 60.0)
        _check_range("lesion strength_ppb", self.strength_ppb, 0.0, 5000.0)
        _check_range("lesion elongation", self.elongation, 1.0, 4.0)
        _check_range("lesion irregularity", self.irregularity, 0.0, 0.3)
        _check_range("lesion texture", self.texture, 0.0, 0.5)

    def parts(self) -> tuple[_Part, ...]:
        """Shells from the centre outwards."""
        raise NotImplementedError

    def _from_border(self, depth_mm: float) -> float:
        """Radius, relative to the border, that lies this deep below it."""
        return max(0.0, 1 - 2 * depth_mm / self.size_mm)


@dataclass(frozen=True, kw_only=True)
class HemorrhageConfig(LesionConfig):
    """Bleeding: a clot of deoxygenated blood in oedema, or later a cavity with a rim of haemosiderin."""

    stage: Literal["acute", "chronic"] = "acute"
    """Solid clot, or fluid in a rim that has the strength."""
    rim_mm: float = 1.5
    """Thickness of the rim of a chronic one in mm."""
    oedema_mm: float = 2.0
    """Width in mm of the oedema around an acute one; χ is diluted and R2 falls there."""

    kind: ClassVar[Kind] = "hemorrhage"
    typical_size_mm: ClassVar[tuple[float, float]] = (4.0, 25.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("hemorrhage rim_mm", self.rim_mm, 0.1, 10.0)
        _check_range("hemorrhage oedema_mm", self.oedema_mm, 0.0, 10.0)

    def parts(self) -> tuple[_Part, ...]:
        """Clot and oedema, or cavity and rim."""
        if self.stage == "chronic":
            edge = self._from_border(self.rim_mm)
            return (
                _Part(0.0, edge, _Material(0.1 * self.strength_ppb, r2_ratio=0.15, t1_s=3.0, m0=0.97)),
                _Part(edge, 1.0, _haemosiderin(self.strength_ppb)),
            )
        clot = _Part(0.0, 1.0, _Material(self.strength_ppb, r2_ratio=0.8, m0=0.85))
        around = _Material(keep_pos=0.85, keep_neg=0.85, r2_ratio=0.7, t1_s=1.5, m0=0.9)
        return (clot, _Part(1.0, 1 + 2 * self.oedema_mm / self.size_mm, around))


@dataclass(frozen=True, kw_only=True)
class CalcificationConfig(LesionConfig):
    """Calcium in place of tissue: χ_neg and few protons."""

    size_mm: float = 5.0
    """Diameter in mm of the sphere of equal volume."""

    kind: ClassVar[Kind] = "calcification"
    typical_size_mm: ClassVar[tuple[float, float]] = (1.0, 15.0)

    def parts(self) -> tuple[_Part, ...]:
        """One solid part."""
        calcium = _Material(chi_neg_ppb=self.strength_ppb, r2_ratio=1.3, t1_s=0.8, m0=0.5)
        return (_Part(0.0, 1.0, calcium),)


@dataclass(frozen=True, kw_only=True)
class MicrobleedConfig(LesionConfig):
    """A small deposit of haemosiderin; `microbleeds` makes many."""

    size_mm: float = 2.5
    """Diameter in mm of the sphere of equal volume."""
    place: Place = "lobar"
    """Tissue that the centre lies in."""
    texture: float = 0.0
    """Amplitude of the variation of χ inside, relative; 0.5 at most. The mean over the label stays."""

    kind: ClassVar[Kind] = "microbleed"
    typical_size_mm: ClassVar[tuple[float, float]] = (1.0, 5.0)
    typical_strength_ppb: ClassVar[tuple[float, float]] = (100.0, 1500.0)

    def parts(self) -> tuple[_Part, ...]:
        """One solid part."""
        return (_Part(0.0, 1.0, _haemosiderin(self.strength_ppb)),)


@dataclass(frozen=True, kw_only=True)
class CavernomaConfig(LesionConfig):
    """Cavernous malformation: caverns of blood of different age (popcorn) in a rim of haemosiderin."""

    size_mm: float = 12.0
    """Diameter in mm of the sphere of equal volume."""
    rim_mm: float = 1.5
    """Thickness of the rim, which has the strength, in mm."""
    core: float = 0.4
    """Mean χ_pos of the caverns over that of the rim."""
    irregularity: float = 0.15
    """Standard deviation of the radius over all directions, relative to that of the ellipsoid."""
    texture: float = 0.5
    """Amplitude of the variation of χ between caverns, relative; 0.5 at most."""

    kind: ClassVar[Kind] = "cavernoma"
    texture_frequencies: ClassVar[tuple[float, float]] = (6.0, 12.0)
    typical_size_mm: ClassVar[tuple[float, float]] = (5.0, 25.0)
    typical_strength_ppb: ClassVar[tuple[float, float]] = (100.0, 1500.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("cavernoma rim_mm", self.rim_mm, 0.1, 10.0)
        _check_range("cavernoma core", self.core, 0.0, 1.0)

    def parts(self) -> tuple[_Part, ...]:
        """Caverns and rim."""
        edge = self._from_border(self.rim_mm)
        caverns = _Material(self.core * self.strength_ppb, r2_ratio=0.5, m0=0.9)
        return (_Part(0.0, edge, caverns), _Part(edge, 1.0, _haemosiderin(self.strength_ppb)))


@dataclass(frozen=True, kw_only=True)
class PlaqueConfig(LesionConfig):
    """Plaque of multiple sclerosis: myelin is lost, and a rim of iron may surround it."""

    strength_ppb: float = 0.0
    """χ_pos in ppb that the rim has more than the tissue; 0 for a plaque without a rim."""
    demyelination: float = 0.7
    """Part of the tissue's χ_neg that is lost."""
    rim_mm: float = 1.0
    """Thickness of the rim in mm."""
    place: Place = "periventricular"
    """Tissue that the centre lies in; next to a lateral ventricle the long axis points away from it."""
    elongation: float = 1.8
    """Longest over shortest axis."""
    irregularity: float = 0.06
    """Standard deviation of the radius over all directions, relative to that of the ellipsoid."""

    kind: ClassVar[Kind] = "plaque"
    typical_size_mm: ClassVar[tuple[float, float]] = (3.0, 15.0)
    typical_strength_ppb: ClassVar[tuple[float, float]] = (20.0, 120.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("plaque demyelination", self.demyelination, 0.0, 1.0)
        _check_range("plaque rim_mm", self.rim_mm, 0.1, 10.0)

    def parts(self) -> tuple[_Part, ...]:
        """Demyelinated core and rim; less myelin leaves more water, which relaxes slower."""
        inside = _Material(
            keep_pos=1.0,
            keep_neg=1 - self.demyelination,
            r2_ratio=1 - 0.5 * self.demyelination,
            t1_s=0.85 + 0.6 * self.demyelination,
            m0=0.70 + 0.18 * self.demyelination,
        )
        if self.strength_ppb == 0:
            return (_Part(0.0, 1.0, inside),)
        edge = self._from_border(self.rim_mm)
        return (_Part(0.0, edge, inside), _Part(edge, 1.0, replace(inside, chi_pos_ppb=self.strength_ppb)))


@dataclass(frozen=True, kw_only=True)
class ParkinsonConfig:
    """Substantia nigra in Parkinson's disease: iron rises, most in its back, where nigrosome 1 lies.

    Raises
    ------
    InputError
        If the rise is out of its range.
    """

    rise: float = 0.35
    """Increase of the mean χ_pos of the substantia nigra, relative."""
    side: Literal["both", "left", "right"] = "both"
    """Side of the body."""

    kind: ClassVar[str] = "parkinson"

    def __post_init__(self) -> None:
        _check_range("parkinson rise", self.rise, 0.0, 3.0)


KINDS: dict[Kind, type[LesionConfig]] = {
    kind.kind: kind
    for kind in (HemorrhageConfig, CalcificationConfig, MicrobleedConfig, CavernomaConfig, PlaqueConfig)
}
"""Options of every kind of lesion that has a shape."""


@dataclass(frozen=True, kw_only=True)
class PatientConfig:
    """Random lesions of a simulated patient.

    Raises
    ------
    InputError
        If an option is out of its range.
    """

    kinds: Annotated[tuple[Kind, ...], arg(name="lesions")] = ()
    """Kinds that are drawn from; none: a healthy head."""
    count: Annotated[int, arg(name="lesion-count")] = 5
    """Number of lesions."""
    size_mm: Annotated[tuple[float, float], arg(name="lesion-size-mm")] = (1.0, 25.0)
    """Smallest and largest size in mm; narrowed to what is typical of a kind."""
    strength_ppb: Annotated[tuple[float, float], arg(name="lesion-strength-ppb")] = (20.0, 1500.0)
    """Smallest and largest strength in ppb; narrowed to what is typical of a kind."""
    parkinson_rise: float = 0.0
    """Increase of χ_pos in the substantia nigra, relative; 0 for none."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(
                "lesion count", found=f"{self.count}", expected="0 or more", fix="Correct the option."
            )
        for name in ("size_mm", "strength_ppb"):
            low, high = getattr(self, name)
            if not (0 < low <= high < math.inf):
                raise InputError(
                    f"lesion {name}",
                    found=f"{low} to {high}",
                    expected="two numbers above 0, the smaller one first",
                    fix="Correct the option.",
                )
        ParkinsonConfig(rise=self.parkinson_rise)


def _haemosiderin(strength_ppb: float) -> _Material:
    return _Material(strength_ppb, t1_s=1.1, m0=0.75)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(name, found=f"{value}", expected=f"{low:g} to {high:g}", fix="Correct the option.")


# ---- patients ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlacedLesion:
    """A row of the table of lesions.

    Parameters
    ----------
    label
        Its number in the lesion label map.
    kind
        Of the lesion.
    position_mm
        Its centre in world coordinates (RAS+).
    volume_mm3
        Its volume, without oedema.
    strength_ppb
        What was assigned; in Parkinson's disease the mean rise of χ_pos.
    chi_pos_ppb, chi_neg_ppb
        Mean of the sources over its label: what a perfect method reads there.
    """

    label: int
    kind: str
    position_mm: Millimetres
    volume_mm3: float
    strength_ppb: float
    chi_pos_ppb: float
    chi_neg_ppb: float


@dataclass(frozen=True, eq=False)
class Patient:
    """A head with lesions.

    Parameters
    ----------
    tissue
        Maps with the lesions in them; its `labels` are still those of the healthy head.
    labels
        Number of the lesion in each voxel, 0 elsewhere, shape (i, j, k). A lesion's label has the voxels
        that lie wholly in it or, if there is none, the fullest one: so it reads the strength.
    lesions
        One row for each lesion.
    bodies
        What `same_lesions` needs to make them again.
    """

    tissue: Tissue
    labels: LabelVolume
    lesions: tuple[PlacedLesion, ...]
    bodies: tuple[_Body | ParkinsonConfig, ...]


def add_lesions(
    tissue: Tissue,
    lesions: Sequence[LesionConfig | ParkinsonConfig],
    rng: np.random.Generator,
    *,
    separation_mm: float = 0.0,
) -> Patient:
    """Put lesions into a head, or into a crop of one.

    Lesions neither overlap (spheres around them do not) nor leave the brain mask, nor enter ventricles.
    χ of what replaces the tissue is blended with it by volume; R2' follows from the sources by the tissue's
    D_r, and where the tissue's R2' depends on more than that (fibre angles), what is left of the tissue
    keeps its dependence.

    Parameters
    ----------
    tissue
        Healthy or not; it stays as it is.
    lesions
        What to add, in order of their numbers; all lesions of a head go into one call.
    rng
        Draws shape, position and texture, from a stream of its own for each lesion.
    separation_mm
        Least distance between spheres around two lesions.

    Returns
    -------
    Patient
        New tissue, lesion labels and table.

    Raises
    ------
    InputError
        If a lesion at a given position overlaps another or reaches outside of the brain.

    Warns
    -----
    ChisepWarning
        If there was no room for a lesion; it is left out.
    """
    patient, left_out = _filled(tissue, lesions, rng, separation_mm)
    if left_out:
        warnings.warn(
            f"No room for {len(left_out)} of {len(lesions)} lesions ({', '.join(left_out)}); left out.",
            ChisepWarning,
            stacklevel=2,
        )
    return patient


def same_lesions(patient: Patient, tissue: Tissue) -> Patient:
    """Put the lesions of a patient into the same head on other voxels, for example finer ones.

    Parameters
    ----------
    patient
        With lesions.
    tissue
        The same head without lesions, on another grid of the same world coordinates.

    Returns
    -------
    Patient
        New tissue, lesion labels and table; positions, shapes and strengths are those of `patient`.
    """
    canvas = _Canvas(tissue, 0.0)
    for body in patient.bodies:
        if isinstance(body, ParkinsonConfig):
            canvas.add_parkinson(body)
        else:
            canvas.paint(body)
    return canvas.patient()


def random_lesions(
    rng: np.random.Generator,
    kinds: Sequence[Kind],
    count: int,
    *,
    size_mm: tuple[float, float] = (1.0, 25.0),
    strength_ppb: tuple[float, float] = (20.0, 1500.0),
) -> tuple[LesionConfig, ...]:
    """Draw options of lesions for training: size and strength log-uniform, kinds alike often.

    Parameters
    ----------
    rng
        Draws all options, each lesion's from a stream of its own.
    kinds
        Kinds to draw from.
    count
        Number of lesions.
    size_mm, strength_ppb
        Ranges; narrowed to what is typical of a kind.

    Returns
    -------
    tuple of LesionConfig
        For `add_lesions`.

    Raises
    ------
    InputError
        If a kind is unknown, or what is typical of it lies outside of a range.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                "lesion kinds", found=kind, expected=f"some of {', '.join(KINDS)}", fix="Correct the option."
            )
        _common("size_mm", kind, KINDS[kind].typical_size_mm, size_mm)
        _common("strength_ppb", kind, KINDS[kind].typical_strength_ppb, strength_ppb)
    if not kinds:
        return ()
    return tuple(
        _random_lesion(stream, kinds[int(stream.integers(len(kinds)))], size_mm, strength_ppb)
        for stream in rng.spawn(count)
    )


def microbleeds(
    rng: np.random.Generator,
    count: int,
    *,
    place: Place = "lobar",
    size_mm: tuple[float, float] = (1.0, 5.0),
    strength_ppb: tuple[float, float] = (100.0, 1500.0),
) -> tuple[LesionConfig, ...]:
    """Draw many microbleeds of one distribution.

    Parameters
    ----------
    rng
        Draws size and strength, log-uniform.
    count
        Number of microbleeds.
    place
        "lobar" as in amyloid angiopathy, "deep" as in hypertension (Greenberg 2009,
        10.1016/S1474-4422(09)70013-4).
    size_mm, strength_ppb
        Ranges.

    Returns
    -------
    tuple of LesionConfig
        For `add_lesions`.
    """
    drawn = random_lesions(rng, ("microbleed",), count, size_mm=size_mm, strength_ppb=strength_ppb)
    return tuple(replace(lesion, place=place) for lesion in drawn)


def make_patient(tissue: Tissue, rng: np.random.Generator, config: PatientConfig) -> Patient:
    """Put random lesions into a head.

    Parameters
    ----------
    tissue
        Healthy; it stays as it is.
    rng
        Draws the lesions from one stream and their places and shapes from another.
    config
        Kinds, number and ranges.

    Returns
    -------
    Patient
        New tissue, lesion labels and table.
    """
    options_rng, places_rng = rng.spawn(2)
    nigra = [ParkinsonConfig(rise=config.parkinson_rise)] if config.parkinson_rise else []
    drawn = random_lesions(
        options_rng, config.kinds, config.count, size_mm=config.size_mm, strength_ppb=config.strength_ppb
    )
    # The largest are placed first, as long as there is room.
    drawn = tuple(sorted(drawn, key=lambda lesion: -lesion.size_mm))
    return add_lesions(tissue, [*nigra, *drawn], places_rng)


def graded_series(
    tissue: Tissue,
    strengths_ppb: Sequence[float],
    kind: Kind,
    rng: np.random.Generator,
    *,
    size_mm: float = 6.0,
    separation_mm: float = 4.0,
    place: Place = "white",
) -> Patient:
    """Place spheres of graded strength, for the slope of predicted against assigned values.

    Parameters
    ----------
    tissue
        Healthy; it stays as it is.
    strengths_ppb
        One lesion each, numbered in this order.
    kind
        Of all lesions.
    rng
        Draws the positions.
    size_mm
        Diameter of the spheres.
    separation_mm
        Least distance between two spheres around lesions.
    place
        Tissue that the centres lie in.

    Returns
    -------
    Patient
        With one row in the table for each strength, in their order.

    Raises
    ------
    InputError
        If there is no room for all of them.
    """
    lesions = [
        KINDS[kind](
            size_mm=size_mm, strength_ppb=strength, place=place, elongation=1.0, irregularity=0.0, texture=0.0
        )
        for strength in strengths_ppb
    ]
    patient, left_out = _filled(tissue, lesions, rng, separation_mm)
    if left_out:
        raise InputError(
            "graded lesions",
            found=f"room for {len(patient.lesions)} of {len(lesions)} in {place} matter",
            expected="room for all",
            fix="Take fewer or smaller lesions, a smaller separation, or a larger part of the head.",
        )
    return patient


def lesion_table(lesions: Iterable[PlacedLesion]) -> str:
    """Write the table of lesions as tab-separated values, as BIDS wants look-up tables: index, name, …."""
    rows = ["index\tname\tx_mm\ty_mm\tz_mm\tvolume_mm3\tstrength_ppb\tchi_pos_ppb\tchi_neg_ppb"]
    for lesion in lesions:
        numbers = (
            *lesion.position_mm,
            lesion.volume_mm3,
            lesion.strength_ppb,
            lesion.chi_pos_ppb,
            lesion.chi_neg_ppb,
        )
        rows.append("\t".join((str(lesion.label), lesion.kind, *(f"{number:.2f}" for number in numbers))))
    return "\n".join(rows) + "\n"


def _filled(
    tissue: Tissue,
    lesions: Sequence[LesionConfig | ParkinsonConfig],
    rng: np.random.Generator,
    separation_mm: float,
) -> tuple[Patient, list[str]]:
    """Add lesions; return also the kinds of those that found no room."""
    canvas = _Canvas(tissue, separation_mm)
    left_out = []
    for config, stream in zip(lesions, rng.spawn(len(lesions)), strict=True):
        if isinstance(config, ParkinsonConfig):
            done = canvas.add_parkinson(config)
        else:
            body = canvas.placed(config, stream)
            done = body is not None
            if body is not None:
                canvas.paint(body)
        if not done:
            left_out.append(config.kind)
    return canvas.patient(), left_out


def _common(
    name: str, kind: Kind, typical: tuple[float, float], wanted: tuple[float, float]
) -> tuple[float, float]:
    low, high = max(typical[0], wanted[0]), min(typical[1], wanted[1])
    if low > high:
        raise InputError(
            f"lesion {name}",
            found=f"{wanted[0]:g} to {wanted[1]:g}",
            expected=f"a range that meets {typical[0]:g} to {typical[1]:g} for {kind}",
            fix="Widen the range or leave this kind out.",
        )
    return low, high


def _random_lesion(
    rng: np.random.Generator, kind: Kind, sizes_mm: tuple[float, float], strengths_ppb: tuple[float, float]
) -> LesionConfig:
    options = KINDS[kind]
    size_mm, strength_ppb = (
        math.exp(rng.uniform(math.log(low), math.log(high)))
        for low, high in (
            _common("size_mm", kind, options.typical_size_mm, sizes_mm),
            _common("strength_ppb", kind, options.typical_strength_ppb, strengths_ppb),
        )
    )
    common = options(
        size_mm=size_mm,
        strength_ppb=strength_ppb,
        elongation=rng.uniform(1.0, 2.0),
        irregularity=rng.uniform(0.0, 0.2),
    )
    coin = bool(rng.random() < 0.5)
    if isinstance(common, HemorrhageConfig):
        return replace(
            common,
            stage="chronic" if coin else "acute",
            place="deep-grey" if rng.random() < 0.5 else "lobar",
            oedema_mm=rng.uniform(0.0, 4.0),
        )
    if isinstance(common, PlaqueConfig):
        return replace(
            common,
            strength_ppb=strength_ppb if coin else 0.0,
            demyelination=rng.uniform(0.4, 0.95),
            place="periventricular" if rng.random() < 0.6 else "white",
        )
    if isinstance(common, MicrobleedConfig):
        return replace(common, place="deep" if coin else "lobar")
    return replace(common, place="deep-grey" if coin else "white")


# ---- places --------------------------------------------------------------------------------------------


def _flags(labels: Iterable[int]) -> NDArray[np.bool_]:
    """One flag for every number that a label can be."""
    flags = np.zeros(np.iinfo(np.int16).max + 1, dtype=np.bool_)
    flags[list(labels)] = True
    return flags


def _labels_named(*words: str) -> NDArray[np.bool_]:
    return _flags(
        label for region in REGIONS if any(word in region.name for word in words) for label in region.labels
    )


# Fluid and white matter are told by what they are made of, so that new regions fall in their class.
_FLUID = _flags(label for region in REGIONS if region.brain and region.r2_hz < 2 for label in region.labels)
_WHITE = _flags(
    label
    for region in REGIONS
    if region.brain and region.chi_neg_ppb > region.chi_pos_ppb and region.t1_s < 0.95
    for label in region.labels
)
_LATERAL_VENTRICLES = (4, 43)
_CORTEX = _flags(anatomy.CEREBRAL_CORTEX)
_DEEP_GREY = _labels_named("thalamus", "pulvinar", "caudate", "putamen", "pallidum", "accumbens")
_PLACES: dict[Place, NDArray[np.bool_]] = {
    "white": _WHITE,
    "deep-grey": _DEEP_GREY,
    "cortex": _CORTEX,
    "lobar": _CORTEX | _flags(anatomy.CEREBRAL_WHITE),
    "deep": _DEEP_GREY | _labels_named("brain stem", "internal capsule"),
    "periventricular": _WHITE,
}


# ---- shapes --------------------------------------------------------------------------------------------

_WAVES = 8
_BUMPS = (2.0, 5.0)
"""Lowest and highest frequency, in rad per unit direction, of the waves on a lesion's surface."""


def _directions(count: int) -> Vector:
    """Spread unit vectors evenly over the sphere (Fibonacci), shape (3, count)."""
    step = np.arange(count) + 0.5
    height, turn = 1 - 2 * step / count, step * np.pi * (1 + 5**0.5)
    level = np.sqrt(1 - height**2)
    return np.stack((level * np.cos(turn), level * np.sin(turn), height))


_SPHERE = _directions(400)
_SPHERE_POINTS = torch.from_numpy(_SPHERE).float()


@dataclass(frozen=True, eq=False)
class _Waves:
    """Sum of plane waves of random direction, frequency and phase: mean 0, SD about 1."""

    vectors: Tensor
    phases: Tensor

    @classmethod
    def drawn(cls, rng: np.random.Generator, frequencies: tuple[float, float]) -> _Waves:
        vectors = rng.standard_normal((_WAVES, 3))
        vectors *= rng.uniform(*frequencies, (_WAVES, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
        phases = rng.uniform(0, 2 * np.pi, (_WAVES, 1))
        return cls(torch.from_numpy(vectors).float(), torch.from_numpy(phases).float())

    def at(self, points: Tensor) -> Tensor:
        """Value at points, shape (3, n) → (n,)."""
        waves = torch.addmm(self.phases, self.vectors, points).cos_()
        value: Tensor = waves.sum(0) * (2 / _WAVES) ** 0.5
        return value


@dataclass(frozen=True, eq=False)
class _Shape:
    """A star-shaped body around the origin of world coordinates, in mm."""

    radii_mm: Vector
    turn: Vector
    """Columns: directions of the axes."""
    bumps: _Waves | None
    irregularity: float
    largest: float
    """Largest radius over that of the ellipsoid."""

    @classmethod
    def drawn(cls, config: LesionConfig, rng: np.random.Generator) -> _Shape:
        exponents = np.array((0.5, rng.uniform(-0.5, 0.5), -0.5))
        radii = config.elongation ** (exponents - exponents.mean())
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        bumps = _Waves.drawn(rng, _BUMPS) if config.irregularity else None
        shape = cls(radii, turn, bumps, config.irregularity, 1.0)
        radius = shape.radius(_SPHERE_POINTS).double()
        radii = radii * (config.size_mm / 2 / float((radius**3).mean()) ** (1 / 3))
        return replace(shape, radii_mm=radii, largest=1.03 * float(radius.max()))

    def radius(self, directions: Tensor) -> Tensor:
        """Radius over that of the ellipsoid, shape (3, n) → (n,); above 0, so the body is star-shaped."""
        if self.bumps is None:
            return torch.ones(directions.shape[1])
        return torch.exp(self.irregularity * self.bumps.at(directions))

    def pointing(self, direction: Vector, rng: np.random.Generator) -> _Shape:
        """Turn the longest axis along a direction."""
        columns = np.column_stack((direction, rng.standard_normal((3, 2))))
        return replace(self, turn=np.linalg.qr(columns)[0])

    @property
    def axes_mm(self) -> Vector:
        """Unit ball to world mm, shape (3, 3)."""
        return np.asarray(self.turn * self.radii_mm)

    @property
    def reach_mm(self) -> float:
        """Radius of the sphere around it."""
        return self.largest * float(self.radii_mm.max())

    def shells_mm(self, outer: float) -> Vector:
        """Points on its surface and half-way to it, scaled by `outer`, shape (3, n)."""
        surface = _SPHERE * self.radius(_SPHERE_POINTS).numpy()
        shells = np.concatenate((surface, surface[:, ::4] / 2), axis=1)
        return np.asarray(self.axes_mm @ shells * outer)


@dataclass(frozen=True, eq=False)
class _Body:
    """A lesion in its place, whatever the voxels."""

    config: LesionConfig
    shape: _Shape
    centre_mm: Vector
    """In world coordinates."""
    texture: _Waves


@dataclass(frozen=True, eq=False)
class _Raster:
    """A lesion sampled on the voxels of a box."""

    box: tuple[slice, slice, slice]
    fractions: tuple[Tensor, ...]
    """Part of each voxel that each part of the lesion fills."""
    depth: Tensor
    """1 in the centre, falling to 0 at the border and beyond."""
    unit: Tensor
    """Voxels in coordinates where the ellipsoid is the unit ball, shape (3, i, j, k)."""


def _rasterise(
    shape: _Shape, parts: Sequence[_Part], centre: Vector, to_world: Vector, volume_shape: Sequence[int]
) -> _Raster:
    """Sample a lesion finer than the voxels, and average.

    Parameters
    ----------
    shape, parts
        The lesion.
    centre
        In voxel indices.
    to_world
        Voxel steps in world mm, shape (3, 3).
    volume_shape
        Of the volume that the box is clipped to.
    """
    outer = shape.largest * max(part.outer for part in parts)
    half = outer * np.linalg.norm(np.linalg.inv(to_world) @ shape.axes_mm, axis=1)
    box = [
        (max(math.floor(c - h + 0.5), 0), min(math.floor(c + h + 0.5) + 1, n))
        for c, h, n in zip(centre, half, volume_shape, strict=True)
    ]
    samples = _samples_per_voxel(shape, to_world)
    to_unit = torch.from_numpy(np.linalg.inv(shape.axes_mm) @ to_world).float()

    def unit_coordinates(per_voxel: Sequence[int]) -> Tensor:
        ticks = [
            torch.arange(a * n, b * n).add(0.5).div(n).sub(0.5 + c)
            for (a, b), n, c in zip(box, per_voxel, centre.tolist(), strict=True)
        ]
        i, j, k = (to_unit[:, axis, None] * tick for axis, tick in enumerate(ticks))
        return i[:, :, None, None] + j[:, None, :, None] + k[:, None, None, :]

    unit = unit_coordinates(samples)
    length = unit.square().sum(0).sqrt_()
    radius = torch.full_like(length, torch.inf).ravel()
    near = torch.nonzero(length.ravel() < outer)[:, 0]
    directions = unit.flatten(1)[:, near] / length.ravel()[near].clamp(min=1e-6)
    radius[near] = length.ravel()[near] / shape.radius(directions)
    radius = radius.reshape(length.shape)

    def averaged(fine: Tensor) -> Tensor:
        return avg_pool3d(fine[None, None], samples)[0, 0]

    return _Raster(
        box=(slice(*box[0]), slice(*box[1]), slice(*box[2])),
        fractions=tuple(averaged(((radius >= part.inner) & (radius < part.outer)).float()) for part in parts),
        depth=averaged((2 - 2 * radius**2).clamp_(0, 1)),
        unit=unit_coordinates((1, 1, 1)),
    )


def _samples_per_voxel(shape: _Shape, to_world: Vector) -> tuple[int, int, int]:
    """Count samples along each voxel axis: many where a lesion is small, two where voxels are."""
    diameter = 2 * float(np.prod(shape.radii_mm)) ** (1 / 3)
    i, j, k = np.ceil(_FINE_STEPS * np.linalg.norm(to_world, axis=0) / diameter).astype(int)
    return max(2, int(i)), max(2, int(j)), max(2, int(k))


# ---- the head that lesions are put into ----------------------------------------------------------------


class _Canvas:
    """Copies of a tissue's maps, and what has been put into them."""

    def __init__(self, tissue: Tissue, separation_mm: float) -> None:
        self._tissue = tissue
        self._affine = np.asarray(tissue.grid.matrix(), dtype=np.float64)
        self._to_world = self._affine[:3, :3]
        self._from_world = np.linalg.inv(self._to_world)
        self._voxel_mm3 = abs(float(np.linalg.det(self._to_world)))
        # Lesions whose spheres are a voxel's diagonal apart have no voxel in common.
        self._gap_mm = separation_mm + math.hypot(*tissue.grid.voxel_mm)
        self._mask, self._anatomy = tissue.mask.numpy(), tissue.labels.numpy()
        self._maps = {
            name: getattr(tissue, name).clone()
            for name in ("chi_pos_ppm", "chi_neg_ppm", "r2_hz", "r2prime_hz", "t1_s", "m0")
        }
        self._voxels: dict[Place, NDArray[np.intp]] = {}
        self._labels = torch.zeros(tissue.labels.shape, dtype=torch.int16)
        self._spheres: list[tuple[Vector, float]] = []
        self._rows: list[PlacedLesion] = []
        self._bodies: list[_Body | ParkinsonConfig] = []

    def patient(self) -> Patient:
        """Sum up."""
        tissue = replace(self._tissue, **self._maps)
        return Patient(tissue, self._labels, tuple(self._rows), tuple(self._bodies))

    # -- shaped lesions --

    def placed(self, config: LesionConfig, rng: np.random.Generator) -> _Body | None:
        """Draw a lesion and find a place for it; None if there is no room."""
        shape_rng, place_rng, texture_rng = rng.spawn(3)
        found = self._place(config, _Shape.drawn(config, shape_rng), place_rng)
        if found is None:
            return None
        centre, shape = found
        return _Body(
            config, shape, self._world(centre), _Waves.drawn(texture_rng, config.texture_frequencies)
        )

    def paint(self, body: _Body) -> None:
        """Put a lesion into the maps, the labels and the table."""
        config, parts = body.config, body.config.parts()
        centre = self._voxel(body.centre_mm)
        raster = _rasterise(body.shape, parts, centre, self._to_world, self._labels.shape)
        # The few voxels that the points of the test for room have missed stay as they were.
        anatomy_there = self._anatomy[raster.box]
        allowed = torch.from_numpy(self._mask[raster.box] & ~_FLUID[anatomy_there])
        fractions = [fraction * allowed for fraction in raster.fractions]
        solid = sum((f for f, part in zip(fractions, parts, strict=True) if part.outer <= 1), torch.zeros(()))
        inside = (solid >= solid.max() - 1e-6) & (solid > 0)
        self._blend(raster, parts, fractions, inside, config.texture, body.texture)
        self._labels[raster.box][inside] = len(self._rows) + 1
        self._spheres.append((body.centre_mm, body.shape.reach_mm * parts[-1].outer))
        self._bodies.append(body)
        volume = float(solid.sum())
        self._note(config.kind, raster.box, inside, centre, volume, strength_ppb=config.strength_ppb)

    def _place(
        self, config: LesionConfig, shape: _Shape, rng: np.random.Generator
    ) -> tuple[Vector, _Shape] | None:
        """Find a centre, in voxel indices, where the shape has room; the shape may be turned there."""
        outer = config.parts()[-1].outer
        reach_mm, shells = shape.reach_mm * outer, self._from_world @ shape.shells_mm(outer)
        if config.position_mm is not None:
            centre = self._voxel(np.array(config.position_mm, dtype=np.float64))
            if not self._has_room(centre, reach_mm, shells):
                raise InputError(
                    f"{config.kind} at {config.position_mm} mm",
                    found="no room for it there",
                    expected="a lesion within the brain, not in a ventricle, apart from other lesions",
                    fix="Move it or make it smaller.",
                )
            return centre, shape
        candidates = self._candidates(config.place, rng)
        centres = candidates + rng.uniform(-0.5, 0.5, candidates.shape)
        directions = np.empty((0, 3))
        if config.place == "periventricular":
            centres, directions = self._near_ventricle(centres, outer * float(shape.radii_mm.max()))
        for number, centre in enumerate(centres[:_MOST_TRIES]):
            if number < len(directions):
                shape = shape.pointing(directions[number], rng)
                shells = self._from_world @ shape.shells_mm(outer)
            if self._has_room(centre, reach_mm, shells):
                return centre, shape
        return None

    def _candidates(self, place: Place, rng: np.random.Generator) -> Vector:
        """Draw voxels of a place at random, in random order, shape (n, 3)."""
        flags = _PLACES[place]
        # Most places are large: looking at some voxels is faster than looking at all.
        drawn = rng.integers(self._mask.size, size=_DRAWN_VOXELS)
        found = drawn[flags[self._anatomy.ravel()[drawn]] & self._mask.ravel()[drawn]]
        if len(found) < _MOST_TRIES:
            found = rng.permutation(self._voxels_of(place))[:_DRAWN_VOXELS]
        return np.stack(np.unravel_index(found, self._mask.shape), axis=-1).astype(np.float64)

    def _voxels_of(self, place: Place) -> NDArray[np.intp]:
        """Find all voxels of a place, flat indices; once for each place."""
        if place not in self._voxels:
            self._voxels[place] = np.flatnonzero(_PLACES[place][self._anatomy] & self._mask)
        return self._voxels[place]

    @cached_property
    def _lateral_ventricles(self) -> cKDTree | None:
        """Voxels of the lateral ventricles in mm from voxel 0; None where there are none."""
        left, right = _LATERAL_VENTRICLES
        voxels = np.argwhere((self._anatomy == left) | (self._anatomy == right))
        return cKDTree(voxels @ self._to_world.T, balanced_tree=False) if len(voxels) else None

    def _near_ventricle(self, centres: Vector, half_length_mm: float) -> tuple[Vector, Vector]:
        """Put centres first from where a lesion reaches a lateral ventricle; add the directions away from it.

        Without directions where there is no lateral ventricle.
        """
        tree = self._lateral_ventricles
        if tree is None:
            return centres, np.empty((0, 3))
        centres = centres[: 3 * _MOST_TRIES]
        world = centres @ self._to_world.T
        distance, nearest = tree.query(world)
        order = np.argsort(distance > half_length_mm + _BESIDE_MM, kind="stable")
        return centres[order], (world - tree.data[nearest])[order]

    def _has_room(self, centre: Vector, reach_mm: float, shells: Vector) -> bool:
        """Tell whether a lesion around a voxel index stays in the brain and apart from the others.

        `shells` are points of the lesion in voxels from its centre, shape (3, n).
        """
        world = self._world(centre)
        for other, other_reach_mm in self._spheres:
            if np.linalg.norm(world - other) < reach_mm + other_reach_mm + self._gap_mm:
                return False
        i, j, k = np.rint(centre[:, None] + shells).astype(np.intp)
        for index, size in zip((i, j, k), self._mask.shape, strict=True):
            if index.min() < 0 or index.max() >= size:
                return False
        return bool(self._mask[i, j, k].all() and not _FLUID[self._anatomy[i, j, k]].any())

    def _blend(
        self,
        raster: _Raster,
        parts: Sequence[_Part],
        fractions: Sequence[Tensor],
        inside: Tensor,
        texture: float,
        waves: _Waves,
    ) -> None:
        """Blend the materials of a lesion with the tissue, by volume."""
        materials = [part.material for part in parts]

        def mixed(values: Sequence[float]) -> Tensor:
            volume = torch.zeros(inside.shape)
            for fraction, value in zip(fractions, values, strict=True):
                volume += value * fraction
            return volume

        filled = mixed([1.0] * len(parts)).clamp_(max=1)  # rounding must not make sources negative
        added_pos = mixed([m.chi_pos_ppb / 1000 for m in materials])
        added_neg = mixed([m.chi_neg_ppb / 1000 for m in materials])
        if texture:
            pattern = torch.tanh(waves.at(raster.unit.flatten(1))).reshape(inside.shape)
            # In the label only and weighted so that its mean stays: reading and mass are as without texture.
            weight = raster.depth * (added_pos + added_neg) * inside
            total = float(weight.sum())
            mean = float((weight * pattern).sum()) / total if total > 0 else 0.0
            factor = 1 + texture * raster.depth * (pattern - mean) * inside
            added_pos, added_neg = added_pos * factor, added_neg * factor

        box = raster.box
        kept_pos = self._maps["chi_pos_ppm"][box] * (1 - filled + mixed([m.keep_pos for m in materials]))
        kept_neg = self._maps["chi_neg_ppm"][box] * (1 - filled + mixed([m.keep_neg for m in materials]))
        r2_ratio = 1 - filled + mixed([m.r2_ratio for m in materials])
        self._set_sources(box, kept_pos, kept_neg, added_pos, added_neg, r2_ratio)
        for name, values in (("t1_s", [m.t1_s for m in materials]), ("m0", [m.m0 for m in materials])):
            self._maps[name][box] = self._maps[name][box] * (1 - filled) + mixed(values)

    def _set_sources(
        self,
        box: tuple[slice, ...],
        kept_pos: Tensor,
        kept_neg: Tensor,
        added_pos: Tensor,
        added_neg: Tensor,
        r2_ratio: Tensor | float,
    ) -> None:
        """Set χ, R2 and R2' of a box from what is left of the tissue's sources and what the lesion adds."""
        maps, relaxivity = self._maps, self._tissue.relaxivity
        expected = r2prime_of_sources(maps["chi_pos_ppm"][box], maps["chi_neg_ppm"][box], relaxivity)
        orientation = torch.where(expected > 0, maps["r2prime_hz"][box] / expected, 1.0)
        maps["r2prime_hz"][box] = orientation * r2prime_of_sources(
            kept_pos, kept_neg, relaxivity
        ) + r2prime_of_sources(added_pos, added_neg, relaxivity)
        maps["chi_pos_ppm"][box] = kept_pos + added_pos
        maps["chi_neg_ppm"][box] = kept_neg + added_neg
        iron_hz_per_ppm = _R2_OF_IRON_HZ_PER_PPM * self._tissue.b0_t / 3.0
        maps["r2_hz"][box] = maps["r2_hz"][box] * r2_ratio + iron_hz_per_ppm * added_pos

    # -- Parkinson's disease --

    def add_parkinson(self, config: ParkinsonConfig) -> bool:
        """Raise χ_pos of the substantia nigra; False if the volume has none."""
        sides = {"left": (0,), "right": (1,), "both": (0, 1)}[config.side]
        done = [self._raise_nigra(anatomy.NIGRA[side], config) for side in sides]
        if any(done):
            self._bodies.append(config)
        return any(done)

    def _raise_nigra(self, label: int, config: ParkinsonConfig) -> bool:
        nigra = (self._anatomy == label) & self._mask
        if not nigra.any():
            return False
        voxels = np.argwhere(nigra)
        centre = voxels.mean(0)
        low, high = voxels.min(0), voxels.max(0) + 1
        box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        offset = (voxels - centre) @ self._to_world.T
        # World y points forwards; nigrosome 1 lies in the back of the nigra and gains most.
        behind = -offset[:, 1] / max(float(abs(offset[:, 1]).max()), 1e-6)
        gain = torch.zeros(nigra.shape)[box]
        inside = torch.from_numpy(np.ascontiguousarray(nigra[box]))
        gain[inside] = torch.from_numpy(1 + 0.5 * behind).float()
        chi_pos, chi_neg = self._maps["chi_pos_ppm"][box], self._maps["chi_neg_ppm"][box]
        iron = float(chi_pos[inside].sum())
        gain *= iron / max(float((gain * chi_pos).sum()), 1e-12)
        self._set_sources(box, chi_pos, chi_neg, config.rise * gain * chi_pos, torch.zeros_like(chi_neg), 1.0)
        self._labels[box][inside] = len(self._rows) + 1
        self._spheres.append((self._world(centre), float(np.linalg.norm(offset, axis=1).max())))
        rise_ppb = 1000 * config.rise * iron / len(voxels)
        self._note(config.kind, box, inside, centre, float(len(voxels)), strength_ppb=rise_ppb)
        return True

    # -- both --

    def _voxel(self, world_mm: Vector) -> Vector:
        return np.asarray(self._from_world @ (world_mm - self._affine[:3, 3]))

    def _world(self, voxel: Vector) -> Vector:
        return np.asarray(self._to_world @ voxel + self._affine[:3, 3])

    def _note(
        self,
        kind: str,
        box: tuple[slice, slice, slice],
        inside: Tensor,
        centre: Vector,
        voxels: float,
        *,
        strength_ppb: float,
    ) -> None:
        x, y, z = (float(c) for c in self._world(centre))
        self._rows.append(
            PlacedLesion(
                label=len(self._rows) + 1,
                kind=kind,
                position_mm=(x, y, z),
                volume_mm3=float(voxels) * self._voxel_mm3,
                strength_ppb=strength_ppb,
                chi_pos_ppb=1000 * float(self._maps["chi_pos_ppm"][box][inside].mean()),
                chi_neg_ppb=1000 * float(self._maps["chi_neg_ppm"][box][inside].mean()),
            )
        )
