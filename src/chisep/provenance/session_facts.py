"""What is known of a session from its records, sidecars and image headers, and how sessions differ."""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from chisep.errors import ChisepWarning, InputError
from chisep.io import bids
from chisep.provenance.datasets import dataset_links, locate
from chisep.provenance.records import Record, Records, records_of, sessions_of
from chisep.provenance.values import (
    NOT_RECORDED,
    NOT_STATED,
    counted,
    enumerated,
    escaped,
    flat,
    unit_of,
    value_text,
)

Sentences = Iterator[tuple[str, str]]
"""What each sentence is about, by which it is compared between sessions, and the sentence."""


INVERSION = "desc-inversion_Chimap"
"""In the name of the map of the stage `inversion`."""
_MOST_NAMES, _MOST_VALUES = 5, 4


_OBLIQUE_DEG = 1.0


_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class SessionFacts:
    """Records of a session, and acquisition facts of its raw images.

    Parameters
    ----------
    name
        Name of the session.
    records
        By stage.
    megre, mese
        Sidecars of the first gradient echo and the first spin echo; empty where they are not at hand.
    header
        Grid of the first gradient echo: shape, voxel_mm, orientation; empty where it is not at hand.
    relaxivity_hz_per_ppm
        D_r if it was calibrated.
    """

    name: str
    records: Records
    megre: Mapping[str, Any]
    mese: Mapping[str, Any]
    header: Mapping[str, str]
    relaxivity_hz_per_ppm: float | None

    def has(self, stage: str) -> bool:
        """Whether the stage was run."""
        return stage in self.records

    def parameters(self, stage: str) -> Mapping[str, Any]:
        """Parameters of a stage; empty if it was not run or did not record them."""
        record = self.records.get(stage)
        return {} if record is None else record.parameters

    @property
    def one_echo(self) -> bool:
        """Whether there is one gradient echo only: no R2*, and no sources."""
        return "field" in self.records and "sources" in _not_made(self.records["field"])

    @property
    def inversion_stage(self) -> str:
        """Stage of the dipole inversion: `qsm`, or `inversion` if the QSM or D_r was made with its map."""
        inputs = [*self._inputs("qsm"), *self._inputs("calibration")]
        return "inversion" if any(INVERSION in name for name in inputs) else "qsm"

    @property
    def reference(self) -> str:
        """Region whose mean was subtracted from the QSM; "none" without one."""
        region = self.fact("qsm", "ReferenceRegion") or self.parameters("qsm").get("Reference")
        return escaped(str(region or "none"))

    def _inputs(self, stage: str) -> Iterable[str]:
        record = self.records.get(stage)
        return () if record is None else record.inputs

    def said(self, stage: str, name: str) -> str:
        """Text of a parameter with its unit; groups joined by dots."""
        return value_text(dict(flat(self.parameters(stage))).get(name), unit_of(name)) or NOT_RECORDED

    def fact(self, stage: str, name: str) -> Any:  # noqa: ANN401
        """Return what a stage noted; None if it did not."""
        record = self.records.get(stage)
        return None if record is None else dict(flat(record.facts)).get(name)


def read_session_facts(out: Path, raw: Path | None) -> Iterator[SessionFacts]:
    """Read the facts of every finished session; warn of those that cannot be read."""
    links = dataset_links(out, raw)
    for name in sessions_of(out):
        try:
            records = records_of(out, name)
            if "separation" not in records and not _is_done_without(records):  # it failed, or is not done yet
                continue
            megre, mese = (_first_image(records, links, suffix) for suffix in ("_MEGRE", "_MESE"))
            yield SessionFacts(
                name,
                records,
                _sidecar(megre, links),
                _sidecar(mese, links),
                {} if megre is None else _header(megre),
                _calibrated(records, out),
            )
        except InputError as error:
            warnings.warn(f"methods text: {name} is left out: {error}", ChisepWarning, stacklevel=2)


def _is_done_without(records: Records) -> bool:
    """Whether a session that sources cannot be separated of, as of one echo, has its maps."""
    return {"field", "regions"} <= set(records) and "sources" in _not_made(records["field"])


def _not_made(field: Record) -> list[str]:
    found = field.facts.get("NotMade")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _first_image(records: Records, links: Mapping[str, Path], suffix: str) -> Path | None:
    """First raw image of a series that any stage read."""
    for stage in ("field", "registration", "relaxometry", "mask"):
        for name in records[stage].inputs if stage in records else ():
            if name.startswith("bids:raw:") and f"{suffix}." in name:
                path = locate(name, links)
                return path if path is not None and path.is_file() else None
    return None


def _sidecar(image: Path | None, links: Mapping[str, Path]) -> dict[str, Any]:
    return {} if image is None else bids.read_sidecar(image, links["raw"])


def _header(image: Path) -> dict[str, str]:
    try:
        found: Any = nib.load(image)
        affine = np.asarray(found.affine, dtype=np.float64)
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        shape = found.shape[:3]
        normal = affine[:3, 2] / edges[2]
    except Exception as error:  # nibabel raises of all kinds on files that are no images
        raise InputError(
            image, found=f"no readable image ({error})", expected="a NIfTI image", fix="Copy it again."
        ) from error
    axis = int(np.abs(normal).argmax())
    tilt = math.degrees(math.acos(min(1.0, float(abs(normal[axis])))))
    oblique = f", oblique by {tilt:.3g}°" if tilt > _OBLIQUE_DEG else ""
    return {
        "matrix": " × ".join(str(n) for n in shape),
        "voxel": " × ".join(f"{edge:.3g}" for edge in edges) + " mm",
        "fov": " × ".join(f"{n * edge:.3g}" for n, edge in zip(shape, edges, strict=True)) + " mm",
        "orientation": f"{_PLANES[axis]}{oblique} (third voxel axis)",
    }


def _calibrated(records: Records, out: Path) -> float | None:
    if "calibration" not in records:
        return None
    for name in records["calibration"].outputs:
        try:
            return float(json.loads((out / name).read_text(encoding="utf-8"))["hz_per_ppm"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def versions(sessions: Sequence[SessionFacts]) -> str:
    """List the versions of chisep that made the records."""
    found = {record.version for session in sessions for record in session.records.values() if record.version}
    return enumerated(sorted(found)) or f"(version {NOT_RECORDED})"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(escaped(name) for name in names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def merged(sessions: Sequence[SessionFacts], section: Callable[[SessionFacts], Sentences]) -> str:
    """Sentences of all sessions; one that differs between them is preceded by whose it is."""
    told: dict[str, dict[str, list[str]]] = {}
    for session in sessions:
        for about, sentence in section(session):
            told.setdefault(about, {}).setdefault(sentence, []).append(session.name)
    sentences = []
    for variants in told.values():
        for sentence, names in variants.items():
            whose = f"In {len(names)} of {len(sessions)} sessions ({_names(names)}): "
            sentences.append(sentence if len(names) == len(sessions) else whose + sentence)
    return " ".join(sentences)


def variants(
    sessions: Sequence[SessionFacts], of: Callable[[SessionFacts], str], missing: str = NOT_STATED
) -> str:
    """Values of all sessions, the most frequent first, each with how many have it."""
    found: dict[str, int] = defaultdict(int)
    for session in sessions:
        found[of(session) or missing] += 1
    if len(found) == 1:
        return next(iter(found))
    texts = [f"{text} ({counted(n, 'session')})" for text, n in sorted(found.items(), key=lambda x: -x[1])]
    more = [f"{len(texts) - _MOST_VALUES} more values"] if len(texts) > _MOST_VALUES else []
    return "; ".join([*texts[:_MOST_VALUES], *more])
