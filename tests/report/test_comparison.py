"""The comparison of methods: sorted scores, the best marked, and errors in the viewer."""

from __future__ import annotations

import json

import numpy as np

from chisep.report.comparison import comparison_viewer, score_table

COLUMNS = ("method", "map", "inputs", "NRMSE %", "PSNR dB", "SSIM", "xSIM")


def test_scores_are_sorted_within_map_and_inputs_and_the_best_marked():
    rows = [
        ("b", "χ_pos", "pipeline", "50.0", "40.0", "0.9", "0.50"),
        ("a", "χ_neg", "pipeline", "9.0", "50.0", "0.9", "0.9"),
        ("a", "χ_pos", "pipeline", "7.5", "41.0", "0.9", "0.49"),
        ("a", "χ_pos", "noisy maps", "60.0", "30.0", "0.1", "0.1"),
    ]
    table = score_table(COLUMNS, rows)
    assert [row[:4] for row in table.rows] == [
        ("a", "χ_pos", "noisy maps", "60.0"),
        ("a", "χ_pos", "pipeline", "7.5"),
        ("b", "χ_pos", "pipeline", "50.0"),
        ("a", "χ_neg", "pipeline", "9.0"),
    ]
    assert table.best == {(1, 3), (1, 4), (1, 5), (2, 5), (2, 6)}, "a row alone is not the best"


def test_errors_are_estimate_minus_truth():
    shape = (12, 14, 10)
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, bool)
    mask[2:10, 2:12, 2:8] = True
    truth = {"χ_pos": rng.uniform(0, 0.1, shape), "χ_neg": rng.uniform(0, 0.1, shape)}
    estimates = {"χ_pos": {"one": truth["χ_pos"] + 0.01, "two": truth["χ_pos"]}, "χ_neg": {}}
    labels = np.where(mask, 27, 0).astype(np.int32)
    regions = (labels, {27: "left substantia nigra"}, (27, 59))
    viewer = comparison_viewer(truth, estimates, np.diag([2.0, 2.0, 2.0, 1.0]), mask, *regions)
    (scan,) = json.loads(viewer.description)["scans"]
    assert [one["name"] for one in scan["maps"]] == [
        "χ_pos: truth",
        "χ_pos: one",
        "χ_pos: one − truth",
        "χ_pos: two",
        "χ_pos: two − truth",
    ]
    error = scan["maps"][2]
    assert (error["difference"], error["offset"]) == (["map-0-0", "truth-0"], 0)
    assert error["colours"] == "difference"
    assert scan["regions"]["names"] == ["", "left substantia nigra"]
    assert scan["regions"]["nuclei"] == [1]
    assert len(viewer.blocks) == 5, "truth, two estimates, mask, regions: errors are made in the page"
