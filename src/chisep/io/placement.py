"""Where the voxels of a NIfTI file are: its two affines, the frames that their codes name, and their unit.

B0 is along z of the scanner, so only an affine of the scanner (code 1) tells its direction. Programs that
move or normalise images write the new place into the sform and leave the scanner's in the qform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from chisep.types import Affine

SCANNER = 1
"""Code of an affine of the scanner."""
_ALIGNED = 2
_FRAMES = {
    0: "unknown",
    SCANNER: "scanner",
    _ALIGNED: "aligned to another scan",
    3: "Talairach",
    4: "MNI",
    5: "a template",
}
_UNIT_BITS = 7
_MM_OF_UNIT = {1: ("metres", 1000.0), 3: ("micrometres", 1e-3)}
VOXEL_EDGES_MM = (0.01, 100.0)
"""Edges of voxels that scanners make."""
_SAME_DEGREES, _SAME_EDGE = 1.0, 0.02
"""Affines that differ by less than a degree and 2 % in size give the same maps, within 1 %."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where voxels are, by which affine, and what the user should know of it.

    Parameters
    ----------
    affine
        Voxel index to mm, shape (4, 4).
    others
        Other affines that the file states, in mm: images of the same voxels may have one of them.
    code
        Frame of `affine`, by NIfTI's numbers; 1 is the scanner's.
    problem
        Why the direction of B0 does not follow from it; empty if it does.
    note
        Why another affine or unit of the file is not used; empty if there is none.
    assumed
        What was assumed for B0; empty if nothing.
    """

    affine: Affine
    others: tuple[Affine, ...] = ()
    code: int = SCANNER
    problem: str = ""
    note: str = ""
    assumed: str = ""

    @property
    def affines(self) -> tuple[Affine, ...]:
        """All affines that the file states, the one in use first."""
        return (self.affine, *self.others)


def placement(header: Any) -> Placement:  # noqa: ANN401
    """Choose the affine of a NIfTI header: the scanner's where there is one.

    Parameters
    ----------
    header
        A nibabel header of NIfTI-1 or NIfTI-2.
    """
    forms = {"sform": _sform(header), "qform": _qform(header)}
    codes = {name: _code(header, name) for name in forms}
    stated = {name: form for name, form in forms.items() if codes[name] and form is not None}
    if not stated:
        affine, note = _in_mm(header, np.asarray(header.get_base_affine(), dtype=np.float64))
        return Placement(affine, (), 0, "neither a qform nor an sform (both of code 0)", note)
    chosen, problem, note, assumed = _chosen(stated, codes, _zooms(header))
    affine, unit_note = _in_mm(header, stated[chosen])
    others = tuple(_in_mm(header, form)[0] for name, form in stated.items() if name != chosen)
    note = "; ".join(filter(None, (note, unit_note)))
    return Placement(affine, others, codes[chosen], problem, note, assumed)


def _chosen(
    stated: dict[str, Affine], codes: dict[str, int], zooms: tuple[float, ...]
) -> tuple[str, str, str, str]:
    """Name of the affine that is used, why it does not tell B0, what to say of the choice, an assumption."""
    same = len(stated) < 2 or _are_alike(stated["sform"], stated["qform"])
    if "sform" in stated and (codes["sform"] == SCANNER or (same and SCANNER in codes.values())):
        note = "" if same else "its sform and its qform, both of the scanner, differ; the sform is used"
        return "sform", "", note if codes["qform"] == SCANNER else "", ""
    if "qform" in stated and codes["qform"] == SCANNER:
        if "sform" not in stated:
            return "qform", "", "", ""
        return (
            "qform",
            "",
            f"its sform is not the scanner's ({_frame('sform', codes)}); place, voxel size and B0 are taken "
            f"from its qform ({_frame('qform', codes)})",
            "",
        )
    # The qform has no shear, and the voxel size of the header.
    name = "sform" if "sform" in stated and (codes["sform"] <= _ALIGNED or "qform" not in stated) else "qform"
    frame = _frame(name, codes)
    if not _has_edges(stated[name], zooms):
        return name, f"an affine that is not the scanner's and changes the voxel size ({frame})", "", ""
    if codes[name] == _ALIGNED and same:
        # nibabel and SPM give this code to images whose place they did not change.
        return name, "", "", f"its {frame} may not be the scanner's; B0 is taken to be along its z axis"
    return name, f"an affine that is not the scanner's ({frame})", "", ""


def _frame(name: str, codes: dict[str, int]) -> str:
    return f"{name} of code {codes[name]}, {_FRAMES.get(codes[name], 'of no known meaning')}"


def _code(header: Any, name: str) -> int:  # noqa: ANN401
    return max(int(header[f"{name}_code"]), 0)


def _sform(header: Any) -> Affine:  # noqa: ANN401
    return np.asarray(header.get_sform(), dtype=np.float64)


def _qform(header: Any) -> Affine | None:  # noqa: ANN401
    """Affine of the qform; None where its quaternion is none."""
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except Exception:  # nibabel raises whatever the numbers make it run into
        return None


def _zooms(header: Any) -> tuple[float, ...]:  # noqa: ANN401
    return tuple(float(edge) for edge in header["pixdim"][1:4])


def _in_mm(header: Any, affine: Affine) -> tuple[Affine, str]:  # noqa: ANN401
    """Affine in mm, and what to say where the header's unit cannot be."""
    name, factor = _MM_OF_UNIT.get(int(header["xyzt_units"]) & _UNIT_BITS, ("mm", 1.0))
    scaled = affine.copy()
    scaled[:3] *= factor
    if factor == 1 or _is_possible(scaled) or not _is_possible(affine):
        return scaled, ""
    edges = " × ".join(f"{edge:.3g}" for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return affine, f"its header states {name}, which voxels of {edges} cannot be in; they are taken as mm"


def _is_possible(affine: Affine) -> bool:
    with np.errstate(all="ignore"):
        edges = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((edges >= VOXEL_EDGES_MM[0]).all() and (edges <= VOXEL_EDGES_MM[1]).all())


def _has_edges(affine: Affine, zooms: tuple[float, ...]) -> bool:
    """Whether the voxel edges of an affine are those of the header."""
    with np.errstate(all="ignore"):
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        return bool(np.all(np.abs(edges - zooms) <= _SAME_EDGE * np.abs(zooms)))


def _are_alike(one: Affine, other: Affine) -> bool:
    """Whether two affines make voxels of one size and orientation; where their origin is does not matter."""
    with np.errstate(all="ignore"):
        edges = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (one, other)]
        axes = [affine[:3, :3] / edge for affine, edge in zip((one, other), edges, strict=True)]
        if not all(np.isfinite(part).all() for part in (*edges, *axes)):
            return False
        if np.any(np.abs(edges[0] - edges[1]) > _SAME_EDGE * edges[0]):
            return False
        cosines = np.clip((axes[0] * axes[1]).sum(0), -1, 1)
    return bool(math.degrees(float(np.arccos(cosines.min()))) <= _SAME_DEGREES)
