"""`chisep train` from the command line, on small heads: recipes, χ maps, weights, resuming."""

from __future__ import annotations

import json

import pytest

from chisep import cli
from chisep.errors import InputError
from chisep.io.weights import load_header
from chisep.training.command import TrainingConfig, config_of
from chisep.training.recipes import recipes
from tests.small_dataset import write_dataset
from tests.untrained import save_untrained

TINY = {
    "recipe.epochs": "2",
    "recipe.steps-per-epoch": "2",
    "recipe.saves-per-epoch": "1",
    "recipe.validation-crops": "2",
    "recipe.crops.size": "16",
    "recipe.network.unet.widths": "4 8",
    "threads": "1",
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("bids"), ("01", "02", "03"))


def call(recipe, dataset, out, **more):
    options = {
        "out": str(out),
        "data.dataset": str(dataset),
        "data.train": "01 02",
        "data.validation": "03",
        **TINY,
        **more,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", *value.split())]
    return cli.main(["train", recipe, *words])


def test_recipes_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name, recipe in recipes().items():
        assert f"  {name} " in printed
        assert recipe.summary in printed


@pytest.mark.parametrize("name", ["qsmnet", "thesis-unrolled-small"])
def test_every_number_of_a_recipe_is_an_option(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", name, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for option in ("data.train", "recipe.loss.gradient", "recipe.optimiser.alpha-learning-rate", "minutes"):
        assert f"--{option}" in printed
    assert ("--recipe.network.unrolled.alpha" in printed) == ("unrolled" in name)
    assert "Folder in derivatives with local field" in printed
    assert "Name in the header of the weights" in printed


def test_unknown_recipes_get_a_guess(capsys):
    assert cli.main(["train", "thesis-unroled"]) == 1
    assert "Did you mean thesis-unrolled?" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_the_default_of_its_config(name, tmp_path, dataset):
    from chisep.training.data import FoldersConfig

    config = config_of(name)(out=tmp_path, data=FoldersConfig(dataset, ("01",), ("03",)))
    assert isinstance(config, TrainingConfig)
    assert (config.recipe, config.name) == (recipes()[name], name)


def test_train_describe_apply(dataset, tmp_path, capsys):
    """Weights come out, say what they are, and make maps of a network's size anywhere."""
    out = tmp_path / "qsmnet"
    assert call("qsmnet-small", dataset, out, name="ours", licence="PDDL") == 0
    weights = out / "weights.safetensors"
    assert f"{weights}: best validation loss" in capsys.readouterr().out
    header = load_header(weights)
    assert (header["name"], header["licence_of_data"]) == ("ours", "PDDL")
    assert header["recipe"]["steps_per_epoch"] == 2

    assert cli.main(["weights", str(weights)]) == 0
    printed = capsys.readouterr().out
    for words in ("training_data.dataset", "Small heads", "PDDL", "parameters", "not part of chisep"):
        assert words in printed
    assert cli.main(["weights", str(weights), "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out).values()
    assert card["bytes"] == weights.stat().st_size

    anat = "sub-03/anat/sub-03"
    chi = tmp_path / "chi.nii.gz"
    files = {
        "field": dataset / f"derivatives/maps/{anat}_acq-ori1_desc-local_fieldmap.nii.gz",
        "mask": dataset / f"derivatives/truth/{anat}_desc-brain_mask.nii.gz",
        "weights": weights,
        "out": chi,
    }
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert cli.main(["qsm", "--method", "qsmnet", *words]) == 0
    (used,) = json.loads((tmp_path / "chi.json").read_text())["Weights"]
    assert (used["Name"], used["TrainingData"]) == ("ours", "Small heads")


def test_missing_chi_maps_are_made_first(dataset, tmp_path):
    made = dataset / "derivatives" / "by-tkd"
    options = {"data.qsm": "by-tkd", "chi-method": "tkd", "recipe.network.unrolled.iterations": "2"}
    assert call("thesis-unrolled-small", dataset, tmp_path / "first", **options) == 0
    maps = sorted(path.name for path in made.rglob("*.nii.gz"))
    assert maps == [
        f"sub-0{s}_acq-ori{orientation}_Chimap.nii.gz" for s in (1, 2, 3) for orientation in (1, 2)
    ]
    # Once they are there, nobody asks how they were made.
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert call("thesis-baseline-small", dataset, tmp_path / "second", **{"data.qsm": "by-tkd"}) == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_chi_maps_by_weights(dataset, tmp_path):
    options = {"data.qsm": "by-network", "chi-weights": str(save_untrained(tmp_path, "qsmnet"))}
    assert call("thesis-r2s-direct-small", dataset, tmp_path / "out", **options) == 0
    sidecar = next((dataset / "derivatives" / "by-network").rglob("*Chimap.json"))
    assert json.loads(sidecar.read_text())["Weights"][0]["Name"] == "qsmnet"


def test_chi_weights_for_a_solver_are_refused(dataset, tmp_path, capsys):
    options = {"chi-method": "tkd", "chi-weights": "qsmnet"}
    assert call("thesis-baseline-small", dataset, tmp_path / "out", **options) == 1
    assert "no network" in capsys.readouterr().err


def test_stopped_and_gone_on(dataset, tmp_path, capsys):
    """Out of time after an epoch, the same command ends it, with the weights of an undisturbed training."""
    out = tmp_path / "stopped"
    options = {"recipe.epochs": "2"}
    assert call("r2s-small", dataset, out, minutes="1e-6", **options) == 0
    assert "epochs; the same command goes on from there" in capsys.readouterr().out
    assert not (out / "weights.safetensors").exists()
    assert call("r2s-small", dataset, out, **options) == 0
    assert call("r2s-small", dataset, tmp_path / "straight", **options) == 0
    files = [folder / "weights.safetensors" for folder in (out, tmp_path / "straight")]
    headers = [load_header(file) for file in files]
    assert headers[0] == headers[1]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert call("r2s-small", dataset, out, **{"recipe.epochs": "3"}) == 1
    assert "other epochs" in capsys.readouterr().err


def test_missing_data_are_named(dataset, tmp_path, capsys):
    assert call("r2s-small", dataset, tmp_path / "out", **{"data.train": "07"}) == 1
    assert "sub-07" in capsys.readouterr().err
    with pytest.raises(InputError, match="qsmnett"):
        config_of("qsmnett")
