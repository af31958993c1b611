"""DICOM conversion: one session, converted by dcm2niix, into a BIDS dataset.

dcm2niix reads the vendors' formats and writes one NIfTI file per echo and part (magnitude, phase, real,
imaginary) with a sidecar. This module identifies the series, pairs magnitude with phase, converts phase to
radians, and names files as BIDS does.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
from jaxtyping import Complex, Float
from tyro.conf import Positional

from chisep.errors import ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.io.files import write_json
from chisep.io.paths import is_directory, require_inside, require_label

EchoArrays = Float[np.ndarray, "echo i j k"]
"""One real volume per echo, in order of the echo time."""
ComplexEchoArrays = Complex[np.ndarray, "echo i j k"]
"""One complex volume per echo, in order of the echo time."""

Part = Literal["magnitude", "phase", "real", "imaginary"]
Kind = Literal["MEGRE", "MESE"]

_FEWEST_ECHOES = 3
_LARGEST_SERIES = 2**31 - 1
"""Largest integer string of DICOM; a JSON file may hold longer ones."""
_LONGEST_TEXT = 64
"""Longest value of DICOM's short texts; files may hold longer ones, which would fill a message."""
_LONGEST_TE_S = 1.0
_LONGEST_CONVERSION_S = 3600
_LARGEST_FACT = 1e12
_PARTS: dict[str, Part] = {"phase": "phase", "real": "real", "imaginary": "imaginary"}
_OPTIONS: dict[Kind, str] = {"MEGRE": "--megre", "MESE": "--mese"}
_NAMES: dict[Kind, str] = {"MEGRE": "multi-echo gradient echo", "MESE": "multi-echo spin echo"}
# Fields allowed in sidecars. Names of protocols and institutions, and times of day, can identify the subject.
_KEPT_FACTS = (
    *("Manufacturer", "ManufacturersModelName", "SoftwareVersions", "MagneticFieldStrength"),
    *("ImagingFrequency", "MRAcquisitionType", "ScanningSequence", "SequenceVariant", "ScanOptions"),
    *("SequenceName", "PulseSequenceType", "SpoilingState", "EchoTime", "EchoNumber", "EchoTrainLength"),
    *("FlipAngle", "SliceThickness", "SpacingBetweenSlices", "PixelBandwidth", "NumberOfAverages"),
    *("ParallelReductionFactorInPlane", "PartialFourier", "ReceiveCoilName", "PhaseEncodingDirection"),
    *("InPlanePhaseEncodingDirectionDICOM", "ConversionSoftware", "ConversionSoftwareVersion"),
)
_RADIAN_SLACK = 0.05
_ALTERNATING = -0.5


@dataclass(frozen=True)
class DicomConfig:
    """Settings of the DICOM conversion of one session."""

    dicom: Positional[Path]
    """Folder with the DICOM files of one session; its subfolders are searched too."""
    out: Positional[Path]
    """BIDS dataset to create or to add a participant to."""
    participant: str
    """Label of the participant, letters and digits, with or without `sub-`."""
    session: str = ""
    """Label of the session, letters and digits, with or without `ses-`; left out: no session in the names."""
    megre: tuple[str, ...] = ()
    """Series of the multi-echo gradient echo: their numbers, or patterns of their names such as '*gre*'; by
    default they are found automatically."""
    mese: tuple[str, ...] = ()
    """Series of the multi-echo spin echo, in the same way; 'none' leaves spin echoes out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "participant", self.participant.removeprefix("sub-"))
        object.__setattr__(self, "session", self.session.removeprefix("ses-"))
        for option, label in (("--participant", self.participant), ("--session", self.session or "1")):
            require_label(label, option)


def convert(config: DicomConfig) -> list[Path]:
    """Write one session of a BIDS raw dataset from DICOM files.

    Parameters
    ----------
    config
        Input folder, choice of series, and output dataset.

    Returns
    -------
    list of Path
        The images written.

    Raises
    ------
    InputError
        If dcm2niix is missing or converts nothing, the series are ambiguous (the error lists them),
        images cannot be used, or the session is there already.
    OutputError
        If the dataset cannot be written, or a link in it leads elsewhere.
    """
    if not is_directory(config.dicom):
        raise InputError(
            config.dicom, found="no such directory", expected="DICOM files", fix="Check the path."
        )
    _refuse_overwriting(config)
    with tempfile.TemporaryDirectory(prefix="chisep-dicom-") as folder:
        volumes = _converted(config.dicom, Path(folder))
        megre = _chosen(volumes, "MEGRE", config.megre, config.dicom)
        mese = None if config.mese == ("none",) else _chosen(volumes, "MESE", config.mese, config.dicom)
        if megre is None:
            raise _cannot_choose("MEGRE", [], volumes, config.dicom)
        images = _gradient_echoes(megre) + (_spin_echoes(mese) if mese else [])
    if mese is None and not config.mese:
        warnings.warn(
            f"{config.dicom}: no multi-echo spin echo was found among {_listed(volumes)}; if there is one, "
            "choose it by --mese",
            ChisepWarning,
            stacklevel=2,
        )
    if not (config.out / bids.DESCRIPTION).exists():
        bids.write_dataset_description(config.out, "Converted from DICOM by chisep")
    return [image.write(config) for image in images]


# ---- from DICOM to volumes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Volume:
    """One image that dcm2niix wrote: an echo of a series, in one part."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def series(self) -> int:
        number = self.facts.get("SeriesNumber")
        return number if isinstance(number, int) and abs(number) <= _LARGEST_SERIES else 0

    @property
    def name(self) -> str:
        return str(self.facts.get("ProtocolName") or self.facts.get("SeriesDescription") or "")

    @property
    def te_s(self) -> float | None:
        te = self.facts.get("EchoTime")
        return float(te) if isinstance(te, int | float) and 0 < te < _LONGEST_TE_S else None

    @property
    def part(self) -> Part:
        """What is stored, as dcm2niix says in the last value of ImageType."""
        return _PARTS.get((self._types or [""])[-1].lower(), "magnitude")

    @property
    def _types(self) -> list[str]:
        types = self.facts.get("ImageType")
        return [str(value) for value in types] if isinstance(types, list) else []

    @property
    def kind(self) -> Kind | None:
        """Spin echo or spoiled gradient echo; None for what is neither, as EPI or inversion recovery."""
        sequence = set(str(self.facts.get("ScanningSequence", "")).replace("\\", "_").upper().split("_"))
        types = {value.upper() for value in self._types}
        if sequence & {"EP", "IR"}:
            return None
        if "SE" in sequence or (not sequence - {""} and types & {"SE", "M_SE"}):
            return "MESE"
        if "GR" in sequence or (not sequence - {""} and types & {"FFE", "M_FFE"}):
            return "MEGRE"
        return None


def _executable() -> str:
    """Path of dcm2niix: that of the Python package, or what the system has."""
    try:
        return str(importlib.import_module("dcm2niix").bin)
    except ModuleNotFoundError:
        found = shutil.which("dcm2niix")
    if found is None:
        raise InputError(
            "dcm2niix",
            found="no such program",
            expected="the converter of DICOM files",
            fix="Install it: pip install 'chisep[dicom]'.",
        )
    return found


def _converted(dicom: Path, folder: Path) -> list[_Volume]:
    """Run dcm2niix and read what it wrote."""
    # Anonymous sidecars; no compression of what is read at once; slices stay the third axis.
    options = ["-b", "y", "-ba", "y", "-z", "n", "-x", "i", "-f", "%s", "-d", "9"]
    command = [_executable(), *options, "-o", str(folder), str(dicom.absolute())]
    try:
        run = subprocess.run(  # noqa: S603
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_LONGEST_CONVERSION_S
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            dicom,
            found=f"files that dcm2niix works on for more than {_LONGEST_CONVERSION_S} s",
            expected="the DICOM files of one session",
            fix="Leave out files of other sessions and those that are broken.",
        ) from error
    volumes = []
    for path in sorted(folder.glob("*.nii")):
        sidecar = path.with_suffix(".json")
        facts = bids.read_json(sidecar) if sidecar.is_file() else {}
        volumes.append(_Volume(path, facts))
    if not volumes:
        said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()] or ["no message"]
        raise InputError(
            dicom,
            found=f"nothing that dcm2niix converts ({said[-1]})",
            expected="the DICOM files of one session",
            fix="Check the folder; dcm2niix's own messages tell more.",
        )
    return volumes


# ---- which series is what ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Acquisition:
    """All echoes of one scan: the volumes of every part, in order of their echo time."""

    parts: Mapping[Part, Sequence[_Volume]]

    @property
    def te_s(self) -> tuple[float, ...]:
        return tuple(v.te_s or 0.0 for v in next(iter(self.parts.values())))

    @property
    def is_complex(self) -> bool:
        return {"magnitude", "phase"} <= set(self.parts) or {"real", "imaginary"} <= set(self.parts)


def _acquisitions(volumes: Iterable[_Volume]) -> list[_Acquisition]:
    """Put echoes of a series together, and series that are parts of one scan (equal name and echo times).

    A vendor may store magnitude and phase in one series or in two that follow each other. A part that comes
    again belongs to a repetition of the scan.
    """
    series: dict[tuple[int, Part], list[_Volume]] = defaultdict(list)
    for volume in volumes:
        if volume.te_s is not None:
            series[volume.series, volume.part].append(volume)
    scans: dict[tuple[str, tuple[float, ...]], list[dict[Part, list[_Volume]]]] = defaultdict(list)
    for (_, part), echoes in sorted(series.items()):
        echoes.sort(key=lambda v: v.te_s or 0.0)
        times = tuple(round(v.te_s or 0.0, 5) for v in echoes)
        if len(set(times)) < len(times):
            continue
        same = scans[echoes[0].name, times]
        if not same or part in same[-1]:
            same.append({})
        same[-1][part] = echoes
    return [_Acquisition(parts) for same in scans.values() for parts in same]


def _chosen(
    volumes: Sequence[_Volume], kind: Kind, patterns: Sequence[str], source: Path
) -> _Acquisition | None:
    """Return the one acquisition of a kind; None where there is none and none was asked for."""
    if patterns:
        selected = [v for v in volumes if any(_matches(v, pattern) for pattern in patterns)]
        found = [a for a in _acquisitions(selected) if len(a.te_s) > 1]
    else:
        found = [
            a for a in _acquisitions(v for v in volumes if v.kind == kind) if len(a.te_s) >= _FEWEST_ECHOES
        ]
    usable = [a for a in found if (a.is_complex if kind == "MEGRE" else "magnitude" in a.parts)]
    if len(usable) == 1:
        return usable[0]
    if patterns or found:
        raise _cannot_choose(kind, usable, volumes, source)
    return None


def _matches(volume: _Volume, pattern: str) -> bool:
    if pattern.isascii() and pattern.isdigit():
        return str(volume.series) == (pattern.lstrip("0") or "0")
    names = (volume.name, str(volume.facts.get("SeriesDescription", "")))
    return any(fnmatch(name.lower(), pattern.lower()) for name in names)


def _cannot_choose(
    kind: Kind, usable: Sequence[_Acquisition], volumes: Sequence[_Volume], source: Path
) -> InputError:
    what = "magnitude and phase, or real and imaginary part," if kind == "MEGRE" else "magnitude"
    return InputError(
        source,
        found=f"{len(usable)} series that could be the {_NAMES[kind]}, among {_listed(volumes)}",
        expected=f"one {_NAMES[kind]} with {what} of every echo",
        fix=f"Choose by number or name, for example {_OPTIONS[kind]} 5 6, or add the missing files.",
    )


def _listed(volumes: Iterable[_Volume]) -> str:
    """List every series, for a message."""
    series: dict[int, list[_Volume]] = defaultdict(list)
    for volume in volumes:
        series[volume.series].append(volume)
    lines = []
    for number, members in sorted(series.items()):
        parts = ", ".join(sorted({v.part for v in members}))
        times = sorted({1000 * v.te_s for v in members if v.te_s is not None})
        echoes = f"TE {', '.join(f'{te:.4g}' for te in times)} ms" if times else "no TE"
        sequence = shorten(str(members[0].facts.get("ScanningSequence", "unknown sequence")), _LONGEST_TEXT)
        name = shorten(members[0].name, _LONGEST_TEXT) or "no name"
        lines.append(f"[{number}] {name} ({sequence}; {parts}; {echoes})")
    return "; ".join(lines)


# ---- from parts to magnitude and phase ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _BidsImage:
    """One image with all that its name and sidecar need."""

    suffix: Kind
    echo: int
    part: Literal["mag", "phase"] | None
    image: nifti.Image
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, config: DicomConfig) -> Path:
        path = _path(config, self.suffix, self.echo, self.part)
        require_inside(config.out, path)
        write_json(bids.sidecar_of(path), self.facts)
        return nifti.save(path, self.image.data, self.image.affine)


def _path(config: DicomConfig, suffix: str, echo: int, part: str | None) -> Path:
    session = config.session or None
    return bids.raw_path(config.out, config.participant, suffix, echo=echo, part=part, session=session)


def _refuse_overwriting(config: DicomConfig) -> None:
    folder = _path(config, "MEGRE", 1, "mag").parent
    if any(folder.glob("*_MEGRE.nii*")):
        raise InputError(
            folder,
            found="gradient-echo images of this session",
            expected="a session that is not there yet",
            fix="Choose another --participant or --session, or remove the old files.",
        )


def _gradient_echoes(scan: _Acquisition) -> list[_BidsImage]:
    """Magnitude and phase of every echo; phase in radians where its scale is known."""
    pair: tuple[Part, Part] = ("magnitude", "phase")
    if not set(pair) <= set(scan.parts):
        pair = ("real", "imaginary")
    first, second = (_loaded(scan.parts[part]) for part in pair)
    nifti.require_same_grid(first[0], second[0])
    facts = [_facts(volume) for volume in scan.parts[pair[0]]]
    source = f"series {', '.join(str(n) for n in sorted({scan.parts[part][0].series for part in pair}))}"
    one, two = (np.stack([image.data for image in images]) for images in (first, second))
    units = "rad"
    if pair[0] == "real":
        signal = one + 1j * two
    else:
        phase = phase_in_radians(two, str(facts[0].get("Manufacturer", "")))
        if phase is None:
            warnings.warn(
                f"{source}: phase from {two.min():g} to {two.max():g} has no known scale; it is kept",
                ChisepWarning,
                stacklevel=3,
            )
            units = "arbitrary"
            return _pairs(first, one, two, facts, units)
        signal = one * np.exp(1j * phase)
    if slices_alternate(signal):
        warnings.warn(
            f"{source}: the signal changes sign from slice to slice, as GE's reconstruction may leave it; "
            "every second slice was turned back",
            ChisepWarning,
            stacklevel=3,
        )
        signal[..., 1::2] *= -1
    return _pairs(first, np.abs(signal), np.angle(signal), facts, units)


def _pairs(
    images: Sequence[nifti.Image],
    magnitude: EchoArrays,
    phase: EchoArrays,
    facts: Sequence[Mapping[str, Any]],
    units: str,
) -> list[_BidsImage]:
    made = []
    for number, (image, fact) in enumerate(zip(images, facts, strict=True), start=1):
        fact = {**fact, "EchoNumber": number}
        for part, volumes, unit in (("mag", magnitude, "arbitrary"), ("phase", phase, units)):
            data = np.ascontiguousarray(volumes[number - 1], dtype=np.float32)
            of_part = nifti.Image(data, image.affine, image.source)
            made.append(_BidsImage("MEGRE", number, part, of_part, {**fact, "Units": unit}))  # type: ignore[arg-type]
    return made


def _spin_echoes(scan: _Acquisition) -> list[_BidsImage]:
    volumes = scan.parts["magnitude"]
    images = _loaded(volumes)
    return [
        _BidsImage(
            "MESE", number, None, image, {**_facts(volume), "EchoNumber": number, "Units": "arbitrary"}
        )
        for number, (image, volume) in enumerate(zip(images, volumes, strict=True), start=1)
    ]


def _loaded(volumes: Sequence[_Volume]) -> list[nifti.Image]:
    """Read the echoes of one part, all on one grid."""
    images = []
    for volume in volumes:
        image = nifti.load(volume.path)
        # The temporary name is meaningless to the user.
        images.append(nifti.Image(image.data, image.affine, f"series {volume.series}, {volume.part}"))
        nifti.require_same_grid(images[0], images[-1])
    return images


def _facts(volume: _Volume) -> dict[str, Any]:
    """Fields of the sidecar; none that could identify the subject."""
    facts = {key: volume.facts[key] for key in _KEPT_FACTS if _is_plain(volume.facts.get(key))}
    if _is_plain(volume.facts.get("RepetitionTime")):
        facts["RepetitionTimeExcitation"] = volume.facts["RepetitionTime"]
    return facts


def _is_plain(value: object) -> bool:
    """Whether a fact is a number or a text, or some of these, that any sidecar may hold."""
    if isinstance(value, list):
        return all(isinstance(entry, str | int | float) and _is_plain(entry) for entry in value)
    if isinstance(value, str):
        return value.isprintable()
    return isinstance(value, int | float) and abs(value) <= _LARGEST_FACT


def phase_in_radians(phase: EchoArrays, manufacturer: str) -> EchoArrays | None:
    """Convert phase from a vendor's scale to radians; the sign stays as the scanner stored it.

    Siemens stores 12-bit numbers for −π…π (as −4096…4094 after rescaling, or 0…4095), GE and Philips
    milliradians; radians are kept.

    Parameters
    ----------
    phase
        Stored values after the rescaling that the header states, shape (echo, i, j, k).
    manufacturer
        As the sidecar has it.

    Returns
    -------
    EchoArrays or None
        Phase in radians; None where the values fit none of these scales.
    """
    low, high = float(phase.min()), float(phase.max())
    largest = max(-low, high)
    if 1 < largest <= np.pi + _RADIAN_SLACK:
        return phase
    if "siemens" in manufacturer.lower():
        if low >= 0 and 2048 < high <= 4095:
            return (phase - 2048) * (np.pi / 2048)
        if 2048 < largest <= 4096:
            return phase * (np.pi / 4096)
        return None
    if 1500 < largest <= 1000 * (np.pi + _RADIAN_SLACK):
        return phase / 1000
    return None


def slices_alternate(signal: ComplexEchoArrays) -> bool:
    """Whether the complex signal changes sign from each slice to the next.

    A reconstruction that leaves out the shift of k-space by half a field of view multiplies every second
    slice (third axis) by −1. In a head the signal of neighbouring slices is otherwise much alike.
    """
    first = signal[0]
    products = first[..., 1:] * first[..., :-1].conj()
    return bool(products.real.sum() < _ALTERNATING * np.abs(products).sum())
