"""Simulated scan sessions on disk: a BIDS raw dataset, and the truth beside it as derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import ArrayLike, DTypeLike

import chisep
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.files import make_directory, write_json, write_text
from chisep.simulation.anatomy import LabelMap, load_labels, packaged_labels, tilted, with_structures
from chisep.simulation.scanner import Fields, ScannerConfig, scan_gre, scan_se, stored_phase, total_field
from chisep.simulation.tissue import REGIONS, Tissue, TissueConfig, make_tissue

TRUTH = Path("derivatives", "truth")
"""Where the truth lies within the raw dataset."""

_README = """Simulated multi-echo gradient-echo and spin-echo scans
======================================================

Digital heads made by chisep: no scan of a person is in here. `derivatives/truth` holds the maps that made
the scans: sources χ_pos and χ_neg (ppm; χ_neg is a positive magnitude), their local field (ppm), R2, R2'
and R2* (1/s), the brain mask and the labels. All but the labels are 0 outside the brain mask.
"""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(ScannerConfig):
    """Simulated scan sessions, and the scanner that makes them."""

    out: tyro.conf.Positional[Path]
    """Folder of the BIDS dataset to write."""
    subjects: int = 1
    """Number of people."""
    labels: tuple[Path, ...] = ()
    """Label maps with FreeSurfer numbers, one a subject, used again when they run out; none: MNI head."""
    seed: int = 0
    """Seed of all that is random; a subject does not depend on how many there are."""
    megre_only: bool = False
    """Leave out the spin-echo scan."""
    tissue: TissueConfig = field(default_factory=TissueConfig)
    """How people and voxels differ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subjects < 1:
            raise InputError(
                "subjects", found=f"{self.subjects}", wanted="1 or more", remedy="Correct the option."
            )
        if self.seed < 0:
            raise InputError("seed", found=f"{self.seed}", wanted="0 or more", remedy="Correct the option.")
        self.tissue.relaxivity(self.b0_t)


def simulate(config: SimulateConfig, progress: Callable[[str], None] | None = None) -> list[str]:
    """Write a simulated dataset.

    Parameters
    ----------
    config
        What to simulate, and where.
    progress
        Called with one line before each subject.

    Returns
    -------
    list of str
        Labels of the subjects, without `sub-`.

    Raises
    ------
    InputError
        If a label map cannot be used; nothing is written then.
    OutputError
        If the dataset cannot be written.
    """
    heads = [load_labels(path) for path in config.labels[: config.subjects]] or [packaged_labels()]
    make_directory(config.out)
    names = [f"{number:02d}" for number in range(1, config.subjects + 1)]
    _write_dataset_files(config, names, [heads[k % len(heads)] for k in range(config.subjects)])
    for k, name in enumerate(names):
        if progress is not None:
            progress(f"sub-{name} ({k + 1} of {config.subjects})")
        _simulate_subject(config, name, heads[k % len(heads)], np.random.default_rng([config.seed, k]))
    return names


def _simulate_subject(config: SimulateConfig, name: str, head: LabelMap, rng: np.random.Generator) -> None:
    # Each part draws from a stream of its own, so that changing one leaves the others as they were.
    anatomy_rng, tissue_rng, gre_rng, se_rng = rng.spawn(4)
    head = tilted(with_structures(head, anatomy_rng), config.tilt_deg)
    tissue = make_tissue(head, tissue_rng, config.tissue, voxel_mm=config.voxel_edges_mm, b0_t=config.b0_t)
    fields = total_field(tissue)
    _write_truth(config, name, tissue, fields)
    _write_gre(config, name, tissue, fields, gre_rng)
    if not config.megre_only:
        _write_se(config, name, tissue, se_rng)


def _write_gre(
    config: SimulateConfig, name: str, tissue: Tissue, fields: Fields, rng: np.random.Generator
) -> None:
    scan = scan_gre(tissue, fields.total_ppm, config, rng)
    facts = _facts(config) | {
        "PulseSequenceType": "Multi-echo gradient echo",
        "ScanningSequence": "GR",
        "RepetitionTimeExcitation": config.tr_gre_s,
        "FlipAngle": config.flip_deg,
    }
    phase_type = np.float32 if config.phase_units == "rad" else np.int16
    for echo, (signal, te_s) in enumerate(zip(scan, config.te_gre_s, strict=True), start=1):
        facts = facts | {"EchoTime": te_s, "EchoNumber": echo}
        image = bids.raw_path(config.out, name, "MEGRE", echo=echo, part="mag")
        _write(image, signal.abs().numpy(), tissue, facts | {"Units": "arbitrary"})
        image = bids.raw_path(config.out, name, "MEGRE", echo=echo, part="phase")
        phase = stored_phase(signal, config.phase_units).numpy()
        _write(image, phase, tissue, facts | {"Units": config.phase_units}, dtype=phase_type)


def _write_se(config: SimulateConfig, name: str, tissue: Tissue, rng: np.random.Generator) -> None:
    scan = scan_se(tissue, config, rng)
    facts = _facts(config) | {
        "PulseSequenceType": "Multi-echo spin echo",
        "ScanningSequence": "SE",
        "RepetitionTimeExcitation": config.tr_se_s,
        "FlipAngle": 90.0,
    }
    for echo, (magnitude, te_s) in enumerate(zip(scan, config.te_se_s, strict=True), start=1):
        image = bids.raw_path(config.out, name, "MESE", echo=echo)
        _write(
            image,
            magnitude.numpy(),
            tissue,
            facts | {"EchoTime": te_s, "EchoNumber": echo, "Units": "arbitrary"},
        )


def _facts(config: SimulateConfig) -> dict[str, Any]:
    return {
        "Manufacturer": "chisep",
        "ManufacturersModelName": "digital head",
        "SoftwareVersions": chisep.__version__,
        "Modality": "MR",
        "MagneticFieldStrength": config.b0_t,
    }


def _write_truth(config: SimulateConfig, name: str, tissue: Tissue, fields: Fields) -> None:
    root = config.out / TRUTH
    dr = {
        "DrPositiveHzPerPpm": tissue.relaxivity.pos_hz_per_ppm,
        "DrNegativeHzPerPpm": tissue.relaxivity.neg_hz_per_ppm,
    }
    common = {"MagneticFieldStrength": config.b0_t, "B0DirectionVoxelAxes": list(tissue.grid.b0_direction)}
    mask = tissue.mask
    for desc, suffix, volume, facts in (
        (
            "paramagnetic",
            "Chimap",
            tissue.chi_pos_ppm,
            {"Units": "ppm", "Description": "χ_pos, paramagnetic sources"},
        ),
        (
            "diamagnetic",
            "Chimap",
            tissue.chi_neg_ppm,
            {"Units": "ppm", "Description": "χ_neg, a positive magnitude"},
        ),
        (
            "total",
            "Chimap",
            tissue.chi_pos_ppm - tissue.chi_neg_ppm,
            {"Units": "ppm", "Description": "χ_pos − χ_neg"},
        ),
        (
            "local",
            "fieldmap",
            fields.local_ppm * mask,
            {"Units": "ppm", "Description": "Field of the sources in the mask"},
        ),
        (None, "R2map", tissue.r2_hz * mask, {"Units": "1/s"}),
        (None, "R2primemap", tissue.r2prime_hz, {"Units": "1/s", **dr}),
        (None, "R2starmap", (tissue.r2_hz + tissue.r2prime_hz) * mask, {"Units": "1/s", **dr}),
    ):
        _write(bids.derivative_path(root, name, suffix, desc=desc), volume.numpy(), tissue, common | facts)
    image = bids.derivative_path(root, name, "mask", desc="brain")
    _write(image, mask.numpy(), tissue, {"Type": "Brain"}, dtype=np.uint8)
    labels = bids.derivative_path(root, name, "dseg")
    _write(labels, tissue.labels.numpy(), tissue, {"Description": "Names in dseg.tsv"}, dtype=np.int16)


def _write(
    path: Path, data: ArrayLike, tissue: Tissue, facts: Mapping[str, Any], dtype: DTypeLike = np.float32
) -> None:
    """Write an image, and its sidecar first: an image never lacks its facts."""
    write_json(bids.sidecar_of(path), facts)
    nifti.save(path, data, tissue.grid.matrix(), dtype=dtype)


def _write_dataset_files(config: SimulateConfig, names: list[str], heads: list[LabelMap]) -> None:
    out, truth = config.out, config.out / TRUTH
    bids.write_dataset_description(out, "Simulated scans of digital heads")
    bids.write_dataset_description(truth, "Truth of simulated scans of digital heads", derivative=True)
    write_text(out / "README", _README)
    rows = [
        "participant_id\tspecies\thead",
        *(f"sub-{n}\tn/a\t{Path(h.source).name}" for n, h in zip(names, heads, strict=True)),
    ]
    write_text(out / "participants.tsv", "\n".join(rows) + "\n")
    write_json(out / "participants.json", {"head": {"Description": "Label map that the head was made from"}})
    looked_up = sorted(pair for region in REGIONS for pair in region.names())
    table = ["index\tname", *(f"{index}\t{label}" for index, label in looked_up)]
    write_text(truth / "dseg.tsv", "\n".join(table) + "\n")
