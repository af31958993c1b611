"""Ablations of the unrolled network: what they change, and that they are trained, evaluated and cached."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chisep import cli
from chisep.errors import InputError
from chisep.experiments.robustness.ablations import NetworkAblationsConfig, _nrmse, runs
from chisep.io import nifti
from chisep.simulation.anatomy import packaged_labels
from chisep.simulation.dataset import SimulateConfig, simulate
from chisep.training.data import FoldersConfig


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two coarse heads."""
    folder = tmp_path_factory.mktemp("heads")
    whole = packaged_labels()
    head = nifti.save(
        folder / "sixth_dseg.nii.gz",
        whole.labels[::6, ::6, ::6],
        whole.affine @ np.diag([6.0, 6.0, 6.0, 1.0]),
        dtype=np.int16,
    )
    out = folder / "bids"
    simulate(
        SimulateConfig(out=out, labels=(head,), subjects=2, voxel_mm=5.0, maps_only=True, dephasing=False)
    )
    return out


def test_trained_evaluated_and_cached(heads, tmp_path):
    call = ["reproduce", "parts", str(tmp_path), "--dataset", str(heads), "--labels", "truth"]
    call += ["--train", "01", "--validation", "02", "--widths", "2", "4", "--crop", "16"]
    call += ["--epochs", "1", "--steps-per-epoch", "4", "--batch-size", "1", "--test-crops", "4"]
    call += ["--validation-crops", "2"]
    assert cli.main([*call, "--only", "unrolled"]) == 0
    assert cli.main([*call, "--only", "no-noise-maps", "baseline"]) == 0
    found = json.loads((tmp_path / "ablations.json").read_text())
    assert [row["run"] for row in found["Rows"]] == ["unrolled", "baseline", "no-noise-maps"]
    assert found["Budget"]["widths"] == [2, 4]
    page = (tmp_path / "ablations.md").read_text()
    assert "without noise maps as input" in page
    assert "4 steps of 1 crops of 16³" in page
    before = (tmp_path / "runs" / "unrolled" / "evaluated.json").stat().st_mtime_ns
    assert cli.main([*call, "--only", "unrolled"]) == 0
    assert (tmp_path / "runs" / "unrolled" / "evaluated.json").stat().st_mtime_ns == before


def test_nrmse_of_tissue_and_lesions_apart():
    targets = torch.tensor([[0.05, 0.1, 0.3, 0.2], [0.02, 0.04, 0.1, 0.1]]).reshape(2, 4, 1, 1)
    errors = torch.tensor([0.5, 0.5, 0.1, 0.1]).reshape(4, 1, 1)
    mask = torch.ones(1, 4, 1, 1, dtype=torch.bool)
    batch = SimpleNamespace(inputs=None, mask=mask[None], dipole=lambda _: None, phi=lambda _: None)
    example = SimpleNamespace(targets=targets, mask=mask, as_batch=lambda: batch)
    network = SimpleNamespace(intermediate_estimates=lambda *_: [None, (targets * (1 + errors))[None]])
    trained = SimpleNamespace(network=network, config=SimpleNamespace(padding=lambda **_: None))
    found = _nrmse(trained, [example])
    for source in ("chi_pos", "chi_neg"):
        assert found["tissue"][source] == pytest.approx(50)
        assert found["lesions"][source] == pytest.approx(10)


def test_each_run_changes_one_thing(tmp_path):
    config = NetworkAblationsConfig(
        out=tmp_path, data=FoldersConfig(tmp_path, ("01",), ("02",), labels="truth")
    )
    made = {run.name: asdict(run.recipe) for run in runs(config)}
    assert len({json.dumps(recipe, default=str) for recipe in made.values()}) == len(made)
    whole = made["unrolled"]
    for name, recipe in made.items():
        if name.startswith("baseline"):
            assert recipe["network"]["proximal"] is None
            continue
        changed = {key for key, value in recipe.items() if value != whole[key]}
        assert changed == {
            "one-protocol": {"protocol"},
            "one-loss": {"loss"},
            "unrolled-seed-2": {"seed"},
        }.get(name, set() if name == "unrolled" else {"network"})
    with pytest.raises(InputError, match="some of: unrolled"):
        NetworkAblationsConfig(out=tmp_path, data=config.data, only=("nonsense",))
