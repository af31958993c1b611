"""Shipped networks on label maps of real heads: the published rows, and intervals that cover."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chisep.experiments.common.scores import scores
from chisep.experiments.robustness.protocols import UNROLLED, BeyondConfig
from chisep.experiments.robustness.scans import SimulatedScan
from chisep.experiments.thesis.data import TEST, ThesisConfig, first_scan
from chisep.experiments.thesis.rows import ROWS, separated
from chisep.experiments.thesis.table import with_qsmnet
from chisep.networks.config import SOURCES

TABLE = Path(__file__).parents[2] / "docs" / "results" / "thesis" / "table.json"
HEADS = ("01", "02", "03", "04", "09", "11", "12", "13")
"""Label maps of the thesis' eight subjects."""


def test_the_default_network_beats_the_closed_form_and_its_intervals_hold(shared_labels, tmp_path):
    config = BeyondConfig(out=tmp_path, labels=(shared_labels / "head-11_dseg.nii.gz",))
    scan = SimulatedScan(config, "standard", 0, lesions=False)
    own, closed = scan.evaluated(UNROLLED), scan.evaluated("closed-form")
    for source in SOURCES:
        assert own["scores"][source]["nrmse_percent"] < 0.8 * closed["scores"][source]["nrmse_percent"]
        assert own["coverage"][source] == pytest.approx(0.9, abs=0.06)


def test_a_row_of_the_table_of_the_thesis_can_be_derived_again(shared_labels, tmp_path):
    """The committed table is what this code and the shipped weights measure.

    One value differs from the table by 0.12 %; the cause is not known.
    """
    labels = tuple(shared_labels / f"head-{head}_dseg.nii.gz" for head in HEADS)
    case = with_qsmnet(first_scan(ThesisConfig(out=tmp_path, labels=labels), TEST[0]), None)
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    cells = {cell["row"]: cell for cell in table["Cells"] if cell["subject"] == TEST[0]}
    for name in ("chi-sepnet-r2p", "unrolled-thesis"):
        found = scores(separated(ROWS[name], case.maps, None), case.references["truth"], case.maps.mask)
        for source in SOURCES:
            assert found[source] == pytest.approx(cells[name]["truth"][source], rel=3e-3)
