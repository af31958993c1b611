"""Committed pages of results: each is what the code writes from the committed JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chisep.experiments import nuclei, preprocessing, relaxivity, scan_checks
from chisep.experiments.orientations import page as orientations
from chisep.experiments.qsm_ci import page as qsm_ci
from chisep.experiments.reproducibility import page as reproducibility
from chisep.experiments.robustness import ablations as network_ablations
from chisep.experiments.robustness import results as robustness
from chisep.experiments.robustness.protocols import BeyondConfig
from chisep.experiments.thesis import ablations, patients, qsm, table
from chisep.experiments.whole_brain import results as whole_brain
from chisep.training.data import FoldersConfig

RESULTS = Path(__file__).parents[2] / "docs" / "results"
UNUSED = Path("unused")


def _beyond(found):
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in found["Options"].items()}
    return robustness.page(BeyondConfig(**options | {"out": UNUSED}), found)


def _network_ablations(found):
    config = network_ablations.NetworkAblationsConfig(
        out=UNUSED,
        data=FoldersConfig(UNUSED, **{name: tuple(x) for name, x in found["Heads"].items()}),
        test_crops=found["TestCrops"],
        **found["Budget"],
    )
    return network_ablations.page(config, found["Rows"])


def _whole_brain(found):
    before = json.loads((RESULTS / "whole-brain" / "before.json").read_text(encoding="utf-8"))
    return whole_brain.page(found, before)


PAGES = {
    "beyond/beyond": _beyond,
    "beyond/ablations": _network_ablations,
    "orientations/orientations": orientations.page,
    "orientations-1.5mm/orientations": orientations.page,
    "preprocessing": lambda found: preprocessing.page(found["Rows"]),
    "qsm-ci/qsm-ci": qsm_ci.page,
    "regions/regions": nuclei.page,
    "reproducibility/reproducibility": reproducibility.page,
    "relaxivity/relaxivity": relaxivity.page,
    "scan-checks/scan-checks": lambda found: scan_checks.page(found["Sessions"]),
    "thesis/ablations": lambda found: ablations.page(found["Rows"], found["Budget"]),
    "thesis/patients": lambda found: patients.page(found["Rows"], found["IntermediateEstimates"]),
    "thesis/qsm": lambda found: qsm.page(found["Rows"]),
    "thesis/table": lambda found: table.page(found["Rows"]),
    "thesis-from-raw-scans/table": lambda found: table.page(found["Rows"]),
    "whole-brain/whole-brain": _whole_brain,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_is_written_from_the_json_beside_it(name):
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == PAGES[name](found)
