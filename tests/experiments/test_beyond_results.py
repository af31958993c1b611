"""Committed results beyond the thesis: one made again of nothing but a head and shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chisep.experiments.robustness.protocols import CONDITIONS, PROTOCOL_ROWS, ROWS, UNROLLED, BeyondConfig
from chisep.experiments.robustness.scans import SimulatedScan
from chisep.io.files import checksum
from chisep.networks.config import SOURCES
from chisep.networks.inference import shipped

HEADS = ("11", "12", "13", "14")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((RESULTS / "beyond" / "beyond.json").read_text(encoding="utf-8"))


def test_results_are_of_the_weights_here(results):
    weights, found = shipped(), results["Weights"]
    assert {UNROLLED, "unrolled-qsm"} <= set(weights)
    assert {UNROLLED, "unrolled-qsm"} <= set(found)
    for row, facts in found.items():
        if ROWS[row].weights in weights:
            assert facts["sha256"] == checksum(weights[ROWS[row].weights])
    kept = {path.parent.name: path for path in (RESULTS / "beyond" / "weights").glob("*/weights.safetensors")}
    assert {"unrolled-first", "unrolled-gradient"} <= set(kept)
    for row, facts in found.items():
        if ROWS[row].weights in kept:
            assert facts["sha256"] == checksum(kept[ROWS[row].weights])


def test_every_protocol_is_there(results):
    assert set(results["Scores"]) == set(CONDITIONS)
    measured = set(results["Options"]["rows"])
    for name, rows in results["Scores"].items():
        wanted = measured if name == "standard" else measured.intersection(PROTOCOL_ROWS)
        assert set(rows) | set(results["Chi"]["Scores"][name]) == wanted
    assert set(results["Lesions"]) | set(results["Chi"]["Lesions"]) == measured


def test_the_network_gains_what_the_manual_says(results):
    """Against the thesis' baseline on the same heads, trained for as many steps and for as long."""
    for baseline in {"chi-sepnet-r2p-lesions", "chi-sepnet-r2p-compute"} & set(results["Options"]["rows"]):
        own, other = (results["Scores"]["standard"][row] for row in (UNROLLED, baseline))
        for source in SOURCES:
            assert own[source]["nrmse_percent"]["mean"] < 0.9 * other[source]["nrmse_percent"]["mean"]


def test_a_result_can_be_derived_again(results, shared_labels, tmp_path):
    labels = tuple(shared_labels / f"head-{head}_dseg.nii.gz" for head in HEADS)
    scan = SimulatedScan(BeyondConfig(out=tmp_path, labels=labels), "standard", 0, lesions=False)
    found = scan.judged(UNROLLED)
    (cell,) = (
        cell
        for cell in results["Cells"]
        if (cell["condition"], cell["head"], cell["row"]) == ("standard", 1, UNROLLED)
        and "lesions" not in cell
    )
    for source in SOURCES:
        assert found["scores"][source] == pytest.approx(cell["scores"][source], rel=1e-3)
        assert found["held"][source] == pytest.approx(cell["held"][source], abs=1e-3)
