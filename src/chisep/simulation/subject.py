"""One simulated subject on disk: complete or absent, with its record."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import msgspec
import numpy as np

import chisep
from chisep.errors import InputError
from chisep.io.files import checksum, make_directory, write_json
from chisep.simulation.anatomy import LabelMap
from chisep.simulation.config import SimulateConfig
from chisep.simulation.heads import label_map_path
from chisep.simulation.labelmap import coarsened
from chisep.simulation.record import SimulationRecord, read_record, record_path
from chisep.simulation.session import MAPS, TRUTH, SessionWriter

_NOT_IN_RECORD = ("out", "subjects", "labels", "jobs")
_OF_RAW_ORIENTATIONS = ("raw_orientations", "orientation_shift_mm", "orientation_turn_deg", "slab_turn_deg")
"""Options without effect unless the first is set; left out then, so that earlier datasets stay complete."""


class Subject:
    """One subject of a simulated dataset.

    Parameters
    ----------
    config
        Of the dataset.
    index
        Number of the subject, from 0.
    paint_mm
        Edge of the label voxels that tissue is painted on; None for those of the label map and the config.
    """

    def __init__(self, config: SimulateConfig, index: int, paint_mm: float | None = None) -> None:
        self.config, self.index, self.name = config, index, f"{index + 1:02d}"
        self.paint_mm = paint_mm
        self.labels = label_map_path(config, index)
        subject = Path(f"sub-{self.name}")
        # The ground truth has the record, so it is written first and removed last.
        maps, scans = [MAPS / subject] * config.maps, [subject] * (not config.maps_only)
        self.folders = (TRUTH / subject, *maps, *scans)

    @property
    def record(self) -> SimulationRecord:
        """Everything that determines the files, as stored beside the ground truth."""
        # A config may be a subclass, whose further options have no effect here.
        names = {f.name for f in fields(SimulateConfig)}.difference(_NOT_IN_RECORD)
        if not self.config.raw_orientations:
            names = names.difference(_OF_RAW_ORIENTATIONS)
        options = {k: v for k, v in asdict(self.config).items() if k in names}
        head, sha256 = "packaged MNI152 head", None
        if self.labels is not None and self.labels.is_file():
            head, sha256 = self.labels.name, checksum(self.labels)
        return SimulationRecord(
            generated_by=f"chisep {chisep.__version__}",
            head=head,
            head_sha256=sha256,
            paint_mm=msgspec.UNSET if self.paint_mm is None else self.paint_mm,
            # As it is read back: JSON has no tuples, paths or infinity.
            options=json.loads(json.dumps(options, default=str), parse_constant=str),
        )

    def is_complete(self) -> bool:
        """Whether all folders exist and come from the same options."""
        out = self.config.out
        return all((out / f).is_dir() for f in self.folders) and read_record(out, self.name) == self.record

    def refuse_others(self) -> None:
        """Check that only files that chisep simulated would be replaced.

        Raises
        ------
        InputError
            If another file would be replaced.
        """
        for folder in self.folders:
            if (self.config.out / folder).exists() and read_record(self.config.out, self.name) is None:
                raise InputError(
                    self.config.out / folder,
                    found="a participant that chisep did not simulate",
                    expected="no such participant, or an earlier simulation",
                    fix="Choose another folder for the simulated dataset, or remove that participant.",
                )

    def write(self, head: LabelMap) -> None:
        """Simulate the subject under a temporary name, then rename its folders."""
        out = self.config.out
        temporary = out / f".sub-{self.name}.chisep-tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            rng = np.random.default_rng([self.config.seed, self.index])
            config = self.config
            if self.paint_mm is not None:
                head = coarsened(head, self.paint_mm)
                refine_mm = max(config.tissue.refine_mm, self.paint_mm)
                config = replace(config, tissue=replace(config.tissue, refine_mm=refine_mm))
            SessionWriter(config, temporary, self.name).make(head, rng)
            write_json(record_path(temporary, self.name), msgspec.to_builtins(self.record))
            for number, folder in enumerate(reversed(self.folders)):
                if (out / folder).exists():
                    (out / folder).replace(make_directory(temporary / "old") / str(number))
            for folder in self.folders:
                make_directory((out / folder).parent)
                (temporary / folder).replace(out / folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
