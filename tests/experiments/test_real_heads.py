"""Shipped networks on label maps of real heads: better than the closed form, with intervals that hold."""

from __future__ import annotations

import pytest

from chisep.experiments.common.scores import scores
from chisep.experiments.robustness.protocols import UNROLLED, BeyondConfig
from chisep.experiments.robustness.scans import SimulatedScan
from chisep.experiments.thesis.data import TEST, ThesisConfig, first_scan
from chisep.experiments.thesis.rows import ROWS, separated
from chisep.experiments.thesis.table import with_qsmnet
from chisep.networks.config import SOURCES

HEADS = ("01", "02", "03", "04", "09", "11", "12", "13")
"""Label maps of the thesis' eight subjects."""


def test_the_default_network_beats_the_closed_form_and_its_intervals_hold(shared_labels, tmp_path):
    config = BeyondConfig(out=tmp_path, labels=(shared_labels / "head-11_dseg.nii.gz",))
    scan = SimulatedScan(config, "standard", 0, lesions=False)
    own, closed = scan.judged(UNROLLED), scan.judged("closed-form")
    for source in SOURCES:
        assert own["scores"][source]["nrmse_percent"] < 0.8 * closed["scores"][source]["nrmse_percent"]
        assert own["held"][source] == pytest.approx(0.9, abs=0.06)


def test_the_networks_of_the_thesis_beat_the_closed_form(shared_labels, tmp_path):
    labels = tuple(shared_labels / f"head-{head}_dseg.nii.gz" for head in HEADS)
    case = with_qsmnet(first_scan(ThesisConfig(out=tmp_path, labels=labels), TEST[0]), None)

    def nrmse(name):
        made = separated(ROWS[name], case.maps, None)
        found = scores(made, case.references["truth"], case.maps.mask)
        return [found[source]["nrmse_percent"] for source in SOURCES]

    closed = nrmse("closed-form")
    for name in ("chi-sepnet-r2p", "unrolled-thesis"):
        assert all(own < other for own, other in zip(nrmse(name), closed, strict=True))
