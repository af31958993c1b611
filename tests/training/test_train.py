"""Training: the loss falls, interruptions change nothing, and weights have a full header."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import chisep
from chisep.errors import InputError
from chisep.io.files import checksum
from chisep.io.weights import load_weights
from chisep.networks.config import PHI_ROWS, SOURCES
from chisep.networks.inference import has_fast_bfloat16
from chisep.networks.unet import UNetConfig
from chisep.networks.unrolled_gradient import UnrolledGradient
from chisep.networks.weights import load, read_header
from chisep.training.data import load_scans, statistics
from chisep.training.losses import LossConfig
from chisep.training.module import OptimiserConfig, TrainingModule
from chisep.training.recipes import recipes
from chisep.training.train import history, read_scans, train
from chisep.training.trained_range import range_of_scans
from tests.training.tiny import EPOCHS, config, tiny

ROOT = Path(__file__).parents[2]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_weights(out / "weights.safetensors")[0]


def differences(one: Path, other: Path) -> dict[str, float]:
    """Largest difference of each tensor of two trainings."""
    a, b = tensors(one), tensors(other)
    assert set(a) == set(b)
    return {name: (a[name].double() - b[name].double()).abs().max().item() for name in a}


def run_script(name: str, out: Path, dataset: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "training" / name), str(out), str(dataset)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize("name", [name for name in recipes() if not name.endswith("-small")])
def test_the_loss_falls(name, dataset, tmp_path):
    """Of the same crops after every epoch of four steps: crops differ by more than so few steps gain."""
    recipe = tiny(name, epochs=10, saves_per_epoch=1, optimiser=OptimiserConfig(learning_rate=5e-3))
    done = train(config(tmp_path, dataset, recipe))
    assert done.epochs == 10
    assert np.isfinite([value for _, value in history(tmp_path, "loss")]).all()
    losses = [value for _, value in history(tmp_path, "val_loss")]
    assert len(losses) == 10
    assert done.best_loss < 0.92 * losses[0]
    assert done.best_loss == pytest.approx(min(losses))


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory) -> Path:
    """An unrolled training without interruption, two checkpoints an epoch."""
    out = tmp_path_factory.mktemp("straight")
    train(config(out, dataset, tiny("thesis-unrolled", epochs=EPOCHS)))
    return out


class TestResume:
    def test_stopped_by_the_clock_at_every_checkpoint(self, straight, dataset, tmp_path):
        """Weights, α, running statistics and logs are as without interruption, to the bit."""
        training = config(tmp_path, dataset, tiny("thesis-unrolled", epochs=EPOCHS), minutes=0.0)
        for call in range(1, 2 * EPOCHS + 1):
            done = train(training)
            assert done.epochs == call / 2
            assert (done.weights is None) == (call < 2 * EPOCHS)
        assert set(differences(tmp_path, straight).values()) == {0.0}
        for quantity in ("loss", "alpha", "val_loss", "loss_field"):
            assert history(tmp_path, quantity) == history(straight, quantity)
        assert done.best_loss == min(value for _, value in history(straight, "val_loss"))

    def test_killed(self, straight, dataset, tmp_path):
        done = run_script("killed.py", tmp_path, dataset)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "weights.safetensors").exists()
        train(config(tmp_path, dataset, tiny("thesis-unrolled", epochs=EPOCHS)))
        assert set(differences(tmp_path, straight).values()) == {0.0}
        for quantity in ("alpha", "val_loss"):
            assert history(tmp_path, quantity) == history(straight, quantity)

    def test_a_finished_training_is_not_done_again(self, straight, dataset):
        before, stamp = tensors(straight), (straight / "last.ckpt").stat().st_mtime_ns
        again = train(config(straight, dataset, tiny("thesis-unrolled", epochs=EPOCHS)))
        assert again.weights == straight / "weights.safetensors"
        assert again.best_loss == min(value for _, value in history(straight, "val_loss"))
        assert (straight / "last.ckpt").stat().st_mtime_ns == stamp
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(straight).items())

    def test_a_folder_of_another_recipe_is_refused(self, straight, dataset):
        other = config(straight, dataset, tiny("thesis-unrolled", epochs=EPOCHS + 1, seed=1))
        with pytest.raises(InputError, match="a training with other epochs, seed") as raised:
            train(other)
        assert str(straight) in str(raised.value)

    def test_equal_seeds_are_equal_trainings_and_others_are_not(self, dataset, tmp_path):
        outs = [tmp_path / name for name in ("one", "same", "other")]
        for out, seed in zip(outs, (0, 0, 1), strict=True):
            train(config(out, dataset, tiny(seed=seed)))
        assert set(differences(outs[0], outs[1]).values()) == {0.0}
        assert differences(outs[0], outs[2])["unet.head.weight"] > 0

    def test_workers_change_nothing(self, dataset, tmp_path):
        for workers in (0, 1):
            train(config(tmp_path / str(workers), dataset, tiny(epochs=1), workers=workers))
        assert set(differences(tmp_path / "0", tmp_path / "1").values()) == {0.0}


def test_two_processes_equal_one(dataset, tmp_path):
    """On the same batches: gradients are averaged over crops, wherever they are computed."""
    recipe = tiny("thesis-unrolled", norm="none", batch_size=4)
    train(config(tmp_path / "one", dataset, recipe, precision="64-true"))
    done = run_script("two_processes.py", tmp_path / "two", dataset)
    assert done.returncode == 0, done.stderr
    found = differences(tmp_path / "one", tmp_path / "two")
    assert max(found.values()) < 1e-9
    assert "alpha" in found
    one, two = (history(tmp_path / name, "val_loss") for name in ("one", "two"))
    assert [step for step, _ in two] == [step for step, _ in one]
    assert [value for _, value in two] == pytest.approx([value for _, value in one], rel=1e-9)


class TestWeights:
    def test_header(self, straight, dataset, folders):
        """Config, statistics, data and its licence, metrics, commit."""
        recipe = tiny("thesis-unrolled", epochs=EPOCHS)
        _, header = load_weights(straight / "weights.safetensors")
        assert header["network"] == json.loads(json.dumps(asdict(recipe.network)))
        assert header["recipe"]["epochs"] == EPOCHS
        assert header["recipe"]["loss"] == asdict(recipe.loss)
        assert "network" not in header["recipe"]
        assert (header["summary"], header["reference"]) == (recipe.summary, recipe.reference)
        scans = load_scans(folders, ("01",), recipe.network)
        for channel, pair in statistics(scans).items():
            assert header["statistics"][channel] == pytest.approx(pair)
        assert header["training_data"]["train"] == ["01"]
        assert read_header(header).training_range == range_of_scans(scans, recipe.network)
        assert header["training_data"]["validation"] == ["02"]
        description = json.loads((dataset / "dataset_description.json").read_text())
        assert header["training_data"]["dataset"] == description["Name"]
        assert header["licence_of_data"] == "not stated"
        assert header["made_by"]["chisep"] == chisep.__version__
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
        assert header["made_by"]["commit"] == (commit or None)

    def test_are_those_of_the_lowest_validation_loss(self, straight):
        _, header = load_weights(straight / "weights.safetensors")
        step, loss = min(history(straight, "val_loss"), key=lambda pair: pair[1])
        assert header["best_step"] == step + 1
        assert header["metrics"]["validation_loss"] == pytest.approx(loss)
        best = torch.load(straight / "best.ckpt", weights_only=True)["state_dict"]
        for name, value in tensors(straight).items():
            assert torch.equal(best[f"network.{name}"].to(value.dtype), value)
            assert value.dtype == (torch.float16 if value.ndim == 5 else best[f"network.{name}"].dtype)

    def test_name_and_licence_are_those_given(self, dataset, tmp_path):
        train(config(tmp_path, dataset, tiny(epochs=1), name="mine", licence="CC0-1.0"))
        _, header = load_weights(tmp_path / "weights.safetensors")
        assert (header["name"], header["licence_of_data"]) == ("mine", "CC0-1.0")

    def test_can_be_loaded_and_applied(self, straight, folders):
        trained = load(straight / "weights.safetensors")
        assert isinstance(trained.network, UnrolledGradient)
        assert trained.config == tiny("thesis-unrolled").network
        assert not trained.network.training

    def test_checkpoints_hold_no_code(self, straight):
        for name in ("best.ckpt", "last.ckpt"):
            assert torch.load(straight / name, weights_only=True)["global_step"] > 0


class TestStart:
    """A training with initial weights."""

    def test_goes_on_from_them(self, straight, dataset, tmp_path):
        start = straight / "weights.safetensors"
        still = OptimiserConfig(learning_rate=1e-12, alpha_learning_rate=1e-12)
        recipe = tiny("thesis-unrolled", epochs=1, optimiser=still)
        train(config(tmp_path, dataset, recipe, start=str(start)))
        moved = differences(straight, tmp_path)
        assert max(moved["alpha"], *(size for name, size in moved.items() if name.endswith("weight"))) < 1e-6
        before, after = (load_weights(out / "weights.safetensors")[1] for out in (straight, tmp_path))
        assert after["statistics"] == before["statistics"]
        assert after["start"]["sha256"] == checksum(start)
        assert after["start"]["training_data"] == before["training_data"]
        assert after["start"]["best_step"] == before["best_step"]
        assert "start" not in before

    def test_without_the_norms_of_the_start(self, dataset, tmp_path):
        """Batch norms are folded; what is trained starts from the same function."""
        first = tiny("thesis-baseline", epochs=1)
        train(config(tmp_path / "first", dataset, first))
        plain = replace(first.network, unet=replace(first.network.unet, norm="none"))
        still = replace(first, network=plain, optimiser=OptimiserConfig(learning_rate=1e-12))
        start = str(tmp_path / "first" / "weights.safetensors")
        done = train(config(tmp_path / "second", dataset, still, start=start, precision="32-true"))
        again = replace(first, optimiser=still.optimiser)
        same = train(config(tmp_path / "same", dataset, again, start=start, precision="32-true"))
        assert done.best_loss == pytest.approx(same.best_loss, rel=0.02)
        assert not any("running" in name for name in tensors(tmp_path / "second"))

    def test_and_after_a_stop_from_its_own_checkpoint(self, straight, dataset, tmp_path):
        start, recipe = str(straight / "weights.safetensors"), tiny("thesis-unrolled", epochs=2)
        train(config(tmp_path / "whole", dataset, recipe, start=start))
        for _ in range(4):
            train(config(tmp_path / "parts", dataset, recipe, start=start, minutes=0.0))
        assert set(differences(tmp_path / "whole", tmp_path / "parts").values()) == {0.0}

    def test_a_folder_of_another_start_is_refused(self, straight, dataset):
        start = str(straight / "weights.safetensors")
        with pytest.raises(InputError, match="a training with other start"):
            train(config(straight, dataset, tiny("thesis-unrolled", epochs=EPOCHS), start=start))

    def test_other_networks_are_refused(self, straight, dataset, tmp_path):
        wider = replace(tiny("thesis-unrolled").network, unet=UNetConfig((4, 12)))
        for other in (tiny(), tiny("thesis-unrolled", network=wider)):
            with pytest.raises(InputError, match="weights of another network"):
                train(config(tmp_path, dataset, other, start=str(straight / "weights.safetensors")))


def test_averages_are_validated_and_kept(dataset, tmp_path):
    """The average follows the weights of every step, over an interruption too, and is what is exported."""
    slow = OptimiserConfig(learning_rate=3e-3, warm_up_steps=2, average_steps=3)
    recipe = tiny(epochs=1, steps_per_epoch=2, optimiser=slow)
    states = []
    for _ in range(2):
        train(config(tmp_path, dataset, recipe, minutes=0.0))
        states.append(torch.load(tmp_path / "last.ckpt", weights_only=True))
    first, second = states
    name = "network.unet.head.weight"
    assert torch.equal(first["state_dict"][name], first["current_model_state"][name])
    step = second["current_model_state"][name]
    assert not torch.equal(step, first["state_dict"][name])
    averaged = 0.75 * first["state_dict"][name] + 0.25 * step
    torch.testing.assert_close(second["state_dict"][name], averaged)
    kept = tensors(tmp_path)[name.removeprefix("network.")]
    torch.testing.assert_close(kept.float(), averaged, rtol=1e-3, atol=1e-6)


class TestAlpha:
    def module(self, **options) -> TrainingModule:
        network = tiny("thesis-unrolled").network
        return TrainingModule(
            network,
            dict.fromkeys((*PHI_ROWS, *SOURCES), (0.0, 0.03)),
            LossConfig(),
            OptimiserConfig(**options),
        )

    def test_has_a_group_and_a_rate_of_its_own(self):
        module = self.module(learning_rate=1e-3, alpha_learning_rate=0.2)
        groups = module.configure_optimizers()["optimizer"].param_groups
        assert [group["lr"] for group in groups] == [1e-3, 0.2]
        assert len(groups[1]["params"]) == 1
        assert groups[1]["params"][0] is module.network.alpha
        assert len(groups[0]["params"]) == len(list(module.network.parameters())) - 1

    def test_both_rates_fall_in_steps(self):
        made = self.module(decay=0.5, decay_steps=2).configure_optimizers()
        optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        assert made["lr_scheduler"]["interval"] == "step"
        rates = []
        for _ in range(5):
            rates.append([group["lr"] for group in optimiser.param_groups])
            optimiser.step()
            schedule.step()
        assert np.array(rates) == pytest.approx(np.outer([1, 1, 0.5, 0.5, 0.25], [3e-4, 1e-2]))

    def test_both_rates_rise_first_if_so_wanted(self):
        made = self.module(decay=0.5, decay_steps=4, warm_up_steps=3).configure_optimizers()
        rates = []
        for _ in range(5):
            rates.append([group["lr"] for group in made["optimizer"].param_groups])
            made["optimizer"].step()
            made["lr_scheduler"]["scheduler"].step()
        assert np.array(rates) == pytest.approx(np.outer([1 / 3, 2 / 3, 1, 1, 0.5], [3e-4, 1e-2]))

    def test_moves_at_its_own_rate(self, straight):
        alphas = [value for _, value in history(straight, "alpha")]
        assert alphas[0] != 4
        assert len(set(alphas)) == len(alphas)
        # RMSprop's first step is the rate times 1/√(1 − 0.99) = 10.
        assert abs(alphas[0] - 4) > 0.02

    def test_networks_of_one_pass_have_none(self):
        network = tiny("thesis-baseline").network
        module = TrainingModule(
            network, dict.fromkeys((*PHI_ROWS, *SOURCES), (0.0, 0.03)), LossConfig(), OptimiserConfig()
        )
        assert len(module.configure_optimizers()["optimizer"].param_groups) == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            {"learning_rate": 0.0},
            {"alpha_learning_rate": -1.0},
            {"decay": 0.0},
            {"decay_steps": 0},
            {"warm_up_steps": 0},
            {"average_steps": -1},
        ],
    )
    def test_rates_are_checked(self, wrong):
        with pytest.raises(InputError, match="Correct the option"):
            OptimiserConfig(**wrong)


def test_precision_follows_the_hardware(dataset, tmp_path):
    """A CPU that must emulate bfloat16 trains in single precision."""
    for name in ("auto", "32-true", "bf16-mixed"):
        train(config(tmp_path / name, dataset, tiny(epochs=1), precision=name))
    chosen, other = ("bf16-mixed", "32-true") if has_fast_bfloat16("cpu") else ("32-true", "bf16-mixed")
    assert set(differences(tmp_path / "auto", tmp_path / chosen).values()) == {0.0}
    assert max(differences(tmp_path / "auto", tmp_path / other).values()) > 0
    assert all(math.isfinite(value) for _, value in history(tmp_path / "bf16-mixed", "loss"))


def test_says_nothing(dataset, tmp_path, capfd, recwarn, caplog):
    """Only the command line prints."""
    train(config(tmp_path, dataset, tiny(epochs=1), minutes=0.0))
    train(config(tmp_path, dataset, tiny(epochs=1)))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not caplog.records


def test_progress_names_the_scans_that_are_read(dataset, tmp_path):
    calls = []
    train(config(tmp_path, dataset, tiny(epochs=1)), lambda *what: calls.append(what))
    assert calls[0] == ("sub-01_acq-ori1", 0, 3)
    assert ("sub-02_acq-ori3", 2, 3) in calls


def test_scans_may_be_shared(dataset, tmp_path):
    """A network that reads two of three maps learns the same from scans that hold all."""
    baseline = tiny("thesis-baseline")
    recipe = replace(baseline, network=replace(baseline.network, inputs=("r2prime", "field")))
    own, shared = config(tmp_path / "own", dataset, recipe), config(tmp_path / "shared", dataset, recipe)
    train(own)
    train(shared, read=lambda: read_scans(shared.data, baseline))
    assert not any(differences(own.out, shared.out).values())


@pytest.mark.parametrize(("subject", "message"), [("train", "sub-09"), ("validation", "sub-09")])
def test_missing_subjects_are_named(dataset, tmp_path, subject, message):
    training = config(tmp_path, dataset, tiny())
    with pytest.raises(InputError, match=message):
        train(replace(training, data=replace(training.data, **{subject: ("09",)})))


def test_batches_that_devices_cannot_share_are_refused(dataset, tmp_path):
    with pytest.raises(InputError, match="3 on 2 devices"):
        train(config(tmp_path, dataset, tiny(batch_size=3), devices=2))
