"""Kinds of lesions: their options, their materials, and random draws of them.

A lesion is a star-shaped body, an ellipsoid whose radius varies with direction, made of parts between
given radii: core, rim, oedema. Each part has a material that replaces or changes the tissue it lies in.
Parts are sampled finer than the voxels and averaged, so a lesion has soft edges and holds the same
amount of iron or calcium whatever the voxels are.

Which source a lesion changes follows pathology: deoxyhaemoglobin and haemosiderin are paramagnetic, calcium
is diamagnetic (Schweser 2010, 10.1118/1.3481505); plaques of multiple sclerosis lose myelin, some keep a
rim of iron (Absinta 2016, 10.1172/JCI86198); the substantia nigra gains iron in Parkinson's disease, and
its nigrosome 1 can no longer be distinguished (Schwarz 2014, 10.1371/journal.pone.0093814).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from tyro.conf import arg

from chisep.errors import InputError

Kind = Literal["hemorrhage", "calcification", "microbleed", "cavernoma", "plaque"]
"""Lesions that have a shape."""
Place = Literal["white", "deep-grey", "cortex", "lobar", "deep", "periventricular"]
"""Location of the centre of a lesion; lobar and deep as microbleeds are rated (Gregoire 2009, MARS)."""
Millimetres = tuple[float, float, float]
"""Position in world coordinates, RAS+."""


@dataclass(frozen=True)
class Material:
    """Material of a part of a lesion: its own sources, and the fraction of the tissue's that remains."""

    chi_pos_ppb: float = 0.0
    chi_neg_ppb: float = 0.0
    keep_pos: float = 0.0
    keep_neg: float = 0.0
    r2_ratio: float = 1.0
    """R2 relative to the original tissue, without the contribution of iron."""
    t1_s: float = 1.2
    m0: float = 0.8


@dataclass(frozen=True)
class Part:
    """A shell of a lesion, between two radii relative to its border."""

    inner: float
    outer: float
    material: Material


@dataclass(frozen=True, kw_only=True)
class LesionConfig:
    """Position, size and shape of a lesion; each kind adds its materials.

    Raises
    ------
    InputError
        If an option is out of its range.
    """

    size_mm: float = 8.0
    """Diameter in mm of the sphere of equal volume."""
    strength_ppb: float = 300.0
    """Maximum χ_pos or χ_neg in ppb; for a solid lesion, the mean over its label."""
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

    def parts(self) -> tuple[Part, ...]:
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

    def parts(self) -> tuple[Part, ...]:
        """Clot and oedema, or cavity and rim."""
        if self.stage == "chronic":
            edge = self._from_border(self.rim_mm)
            return (
                Part(0.0, edge, Material(0.1 * self.strength_ppb, r2_ratio=0.15, t1_s=3.0, m0=0.97)),
                Part(edge, 1.0, _haemosiderin(self.strength_ppb)),
            )
        clot = Part(0.0, 1.0, Material(self.strength_ppb, r2_ratio=0.8, m0=0.85))
        around = Material(keep_pos=0.85, keep_neg=0.85, r2_ratio=0.7, t1_s=1.5, m0=0.9)
        return (clot, Part(1.0, 1 + 2 * self.oedema_mm / self.size_mm, around))


@dataclass(frozen=True, kw_only=True)
class CalcificationConfig(LesionConfig):
    """Calcium in place of tissue: χ_neg and few protons."""

    size_mm: float = 5.0
    """Diameter in mm of the sphere of equal volume."""

    kind: ClassVar[Kind] = "calcification"
    typical_size_mm: ClassVar[tuple[float, float]] = (1.0, 15.0)

    def parts(self) -> tuple[Part, ...]:
        """One solid part."""
        calcium = Material(chi_neg_ppb=self.strength_ppb, r2_ratio=1.3, t1_s=0.8, m0=0.5)
        return (Part(0.0, 1.0, calcium),)


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

    def parts(self) -> tuple[Part, ...]:
        """One solid part."""
        return (Part(0.0, 1.0, _haemosiderin(self.strength_ppb)),)


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

    def parts(self) -> tuple[Part, ...]:
        """Caverns and rim."""
        edge = self._from_border(self.rim_mm)
        caverns = Material(self.core * self.strength_ppb, r2_ratio=0.5, m0=0.9)
        return (Part(0.0, edge, caverns), Part(edge, 1.0, _haemosiderin(self.strength_ppb)))


@dataclass(frozen=True, kw_only=True)
class PlaqueConfig(LesionConfig):
    """Plaque of multiple sclerosis: myelin is lost, and a rim of iron may surround it."""

    strength_ppb: float = 0.0
    """χ_pos of the rim above that of the tissue in ppb; 0 for a plaque without a rim."""
    demyelination: float = 0.7
    """Fraction of the χ_neg of the tissue that is lost."""
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

    def parts(self) -> tuple[Part, ...]:
        """Demyelinated core and rim; less myelin leaves more water, which relaxes slower."""
        inside = Material(
            keep_pos=1.0,
            keep_neg=1 - self.demyelination,
            r2_ratio=1 - 0.5 * self.demyelination,
            t1_s=0.85 + 0.6 * self.demyelination,
            m0=0.70 + 0.18 * self.demyelination,
        )
        if self.strength_ppb == 0:
            return (Part(0.0, 1.0, inside),)
        edge = self._from_border(self.rim_mm)
        return (Part(0.0, edge, inside), Part(edge, 1.0, replace(inside, chi_pos_ppb=self.strength_ppb)))


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
    """Kinds of lesions to draw from; none for a healthy subject."""
    count: Annotated[int, arg(name="lesion-count")] = 5
    """Number of lesions."""
    size_mm: Annotated[tuple[float, float], arg(name="lesion-size-mm")] = (1.0, 25.0)
    """Smallest and largest size in mm; limited to the typical range of a kind."""
    strength_ppb: Annotated[tuple[float, float], arg(name="lesion-strength-ppb")] = (20.0, 1500.0)
    """Smallest and largest strength in ppb; limited to the typical range of a kind."""
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


def _haemosiderin(strength_ppb: float) -> Material:
    return Material(strength_ppb, t1_s=1.1, m0=0.75)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(name, found=f"{value}", expected=f"{low:g} to {high:g}", fix="Correct the option.")


def random_lesions(
    rng: np.random.Generator,
    kinds: Sequence[Kind],
    count: int,
    *,
    size_mm: tuple[float, float] = (1.0, 25.0),
    strength_ppb: tuple[float, float] = (20.0, 1500.0),
) -> tuple[LesionConfig, ...]:
    """Draw options of lesions for training: size and strength log-uniform, kinds equally often.

    Parameters
    ----------
    rng
        Draws all options, each lesion's from a stream of its own.
    kinds
        Kinds to draw from.
    count
        Number of lesions.
    size_mm, strength_ppb
        Ranges; limited to the typical range of a kind.

    Returns
    -------
    tuple of LesionConfig
        For `add_lesions`.

    Raises
    ------
    InputError
        If a kind is unknown, or its typical range does not overlap a given range.
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


def _common(
    name: str, kind: Kind, typical: tuple[float, float], limits: tuple[float, float]
) -> tuple[float, float]:
    low, high = max(typical[0], limits[0]), min(typical[1], limits[1])
    if low > high:
        raise InputError(
            f"lesion {name}",
            found=f"{limits[0]:g} to {limits[1]:g}",
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
