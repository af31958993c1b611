"""Committed results of the thesis' experiments: a row made again of nothing but heads and shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chisep.experiments.common.scores import scores
from chisep.experiments.thesis.ablations import ThesisAblationsConfig, runs
from chisep.experiments.thesis.data import SUBJECTS, TEST, ThesisConfig, first_scan
from chisep.experiments.thesis.rows import RECIPES, ROWS, separated, weights_path
from chisep.experiments.thesis.table import with_qsmnet
from chisep.io.files import checksum
from chisep.networks.config import SOURCES
from chisep.networks.inference import shipped

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "thesis"
HEADS = ("01", "02", "03", "04", "09", "11", "12", "13")
"""Label maps of the eight subjects."""


def results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["table", "patients", "qsm", "iterates-nrmse"])
def test_results_are_of_the_shipped_weights(name):
    for weights, facts in results(name)["Weights"].items():
        assert facts["sha256"] == checksum(weights_path(weights, None))


def test_every_method_and_ablation_has_its_row():
    assert set(RECIPES) <= set(shipped())
    assert [row["row"] for row in results("table")["Rows"]] == list(ROWS)
    assert all(row["subjects"] == len(TEST) for row in results("table")["Rows"])
    assert set(results("patients")["Rows"]) == set(ROWS)
    config = ThesisAblationsConfig(out=Path("out"))
    assert [row["run"] for row in results("ablations")["Rows"]] == [run.name for run in runs(config)]
    assert results("ablations")["Budget"] == json.loads(json.dumps(config.budget))


def test_a_row_can_be_derived_again(shared_labels, tmp_path):
    labels = tuple(shared_labels / f"head-{head}_dseg.nii.gz" for head in HEADS)
    case = with_qsmnet(first_scan(ThesisConfig(out=tmp_path, labels=labels), TEST[0]), None)
    assert TEST[0] in SUBJECTS
    cells = {cell["row"]: cell for cell in results("table")["Cells"] if cell["subject"] == TEST[0]}
    for name in ("chi-sepnet-r2p", "unrolled-thesis"):
        made = separated(ROWS[name], case.maps, None)
        found = scores(made, case.references["truth"], case.maps.mask)
        for source in SOURCES:
            assert found[source] == pytest.approx(cells[name]["truth"][source], rel=1e-3)
