"""Simulated datasets on disk: a BIDS raw dataset, with the ground truth as derivatives."""

from __future__ import annotations

from pathlib import Path

from chisep.io import bids
from chisep.io.files import make_directory, write_json, write_text
from chisep.progress import Progress
from chisep.simulation.config import SimulateConfig
from chisep.simulation.heads import first_maps, healthy_tissue, load_head
from chisep.simulation.parallel import write_in_parallel, write_in_turn
from chisep.simulation.record import read_record
from chisep.simulation.session import MAPS, TRUTH, acquired
from chisep.simulation.subject import Subject
from chisep.simulation.tissue_properties import REGIONS

_README = """Simulated multi-echo gradient-echo and spin-echo scans
======================================================

Digital heads made by chisep: no scan of a person is in here. `derivatives/truth` holds the maps that made
the scans: sources χ_pos and χ_neg (ppm; χ_neg is a positive magnitude), their local field (ppm), R2, R2'
and R2* (1/s), the brain mask and the labels. All but the labels are 0 outside the brain mask.
{orientations}
Lesions of a patient, if there are any, are in `desc-lesion_dseg` of the truth and the table beside it.
"""
_REGISTERED = """\
Scans `acq-ori1`, `acq-ori2`, … are of one head in several poses, registered to the first: their voxels and
affine are those of the first, and `B0DirectionVoxelAxes` in the sidecar is where B0 points."""
_RAW = """\
Scans `acq-ori1`, `acq-ori2`, … are of one head in several poses, as a scanner has them: each has its own
grid, and B0 points along z of the scanner. The truth has the grid of the first; `desc-motion_xfm.json` there
is the motion of the head from the first scan to each other."""


def simulate(
    config: SimulateConfig, progress: Progress | None = None, *, paint_mm: float | None = None
) -> list[str]:
    """Simulate a BIDS dataset; existing subjects with the same options are kept.

    Parameters
    ----------
    config
        Options of the dataset.
    progress
        Receives the subject that is being simulated (in parallel runs, the finished subject), and the number
        of finished subjects.
    paint_mm
        For a quick look: edge of the label voxels that tissue is painted on, instead of those of the label
        map divided to `refine_mm`. At 4 mm a subject takes 2 s rather than 13 s; thin structures are coarse.

    Returns
    -------
    list of str
        Labels of the subjects, without `sub-`.

    Raises
    ------
    InputError
        If a label map cannot be used, or the folder has a participant that chisep did not simulate; nothing
        is written then.
    OutputError
        If the dataset cannot be written.
    """
    subjects = [Subject(config, k, paint_mm) for k in range(config.subjects)]
    missing = [subject for subject in subjects if not subject.is_complete()]
    for subject in missing:
        subject.refuse_others()
    heads = {subject.labels: load_head(subject.labels) for subject in missing}
    make_directory(config.out)
    _write_dataset_files(config)
    finished = (
        write_in_turn(missing, heads, progress)
        if config.jobs == 1 or len(missing) < 2
        else write_in_parallel(missing, heads, config.jobs)
    )
    for done, name in enumerate(finished, start=len(subjects) - len(missing) + 1):
        if progress is not None:
            progress(f"sub-{name}", done, len(subjects))
    _write_participants(config.out)
    return [subject.name for subject in subjects]


def _write_dataset_files(config: SimulateConfig) -> None:
    out, truth = config.out, config.out / TRUTH
    bids.write_dataset_description(out, "Simulated scans of digital heads")
    bids.write_dataset_description(truth, "Truth of simulated scans of digital heads", derivative=True)
    if config.maps:
        bids.write_dataset_description(out / MAPS, "Fields and R2' of digital heads", derivative=True)
    orientations = _RAW if config.raw_orientations else _REGISTERED
    write_text(out / "README", _README.format(orientations=orientations))
    looked_up = sorted(pair for region in REGIONS for pair in region.names())
    table = ["index\tname", *(f"{index}\t{label}" for index, label in looked_up)]
    write_text(truth / "dseg.tsv", "\n".join(table) + "\n")


def _write_participants(out: Path) -> None:
    """List all participants, also of earlier runs: in the truth all, in the root those with scans."""
    names = sorted(folder.name.removeprefix("sub-") for folder in (out / TRUTH).glob("sub-*"))
    records = {name: record for name in names if (record := read_record(out, name)) is not None}
    for root in (out, out / TRUTH):
        here = {f"sub-{name}": record for name, record in records.items() if (root / f"sub-{name}").is_dir()}
        # BIDS allows no table without people.
        if here:
            rows = [f"{name}\tn/a\t{record.head}" for name, record in here.items()]
            table = ["participant_id\tspecies\thead", *rows]
            write_json(root / "participants.json", {"head": {"Description": "Label map of the head"}})
            write_text(root / "participants.tsv", "\n".join(table) + "\n")


__all__ = ["MAPS", "TRUTH", "SimulateConfig", "acquired", "first_maps", "healthy_tissue", "simulate"]
