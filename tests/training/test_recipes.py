from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from chisep.errors import InputError
from chisep.networks.config import NOISE, SOURCES, build
from chisep.networks.unet import REFERENCE_WIDTHS
from chisep.networks.unrolled_gradient import UnrolledGradient
from chisep.training.recipes import FIELD_WIDTHS, PROXIMAL_WIDTHS, SMALL_WIDTHS, annealed, find, recipes

EQUAL = [name for name in recipes() if name.startswith("equal-")]
PUBLISHED = [name for name in recipes() if not name.endswith("-small") and name not in EQUAL]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name):
    """Widths, norm, rate and batch as published, and 20 epochs."""
    recipe = find(name)
    assert recipe.network.unet.widths == REFERENCE_WIDTHS
    assert recipe.network.unet.norm == "batch"
    assert (recipe.epochs, recipe.batch_size, recipe.crops.size) == (20, 12, 64)
    assert (recipe.optimiser.learning_rate, recipe.optimiser.decay) == (3e-4, 0.98)
    assert (recipe.loss.label, recipe.loss.gradient) == (1.0, 0.1)
    assert recipe.summary
    assert recipe.reference


@pytest.mark.parametrize("name", PUBLISHED)
def test_small_recipes_differ_in_size_and_learning_rate(name):
    recipe, small = find(name), find(f"{name}-small")
    of_sources = PROXIMAL_WIDTHS if recipe.network.outputs == SOURCES else FIELD_WIDTHS
    assert small.network.unet.widths == (of_sources if recipe.network.proximal else SMALL_WIDTHS)
    same = replace(
        recipe,
        network=small.network,
        crops=replace(recipe.crops, size=small.crops.size),
        epochs=40 if name in ("unrolled", "unrolled-baseline") else 20,
        steps_per_epoch=small.steps_per_epoch,
        batch_size=small.batch_size,
        validation_crops=small.validation_crops,
        optimiser=small.optimiser,
    )
    assert asdict(small) == asdict(same)
    assert small.network.inputs == recipe.network.inputs
    assert small.network.unrolled == recipe.network.unrolled


@pytest.mark.parametrize("steps", [4000, 1000, 40])
def test_an_annealed_rate_falls_by_a_factor_of_20(steps):
    recipe = replace(find("qsmnet"), epochs=2, steps_per_epoch=steps // 2, saves_per_epoch=1)
    optimiser = annealed(recipe).optimiser
    assert optimiser.learning_rate == pytest.approx(3 * recipe.optimiser.learning_rate)
    last = optimiser.decay ** (steps // optimiser.decay_steps)
    assert 1 / last == pytest.approx(20, rel=0.15) if steps > 40 else last > 1 / 20


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_makes_a_network(name):
    network = find(name).network
    with torch.device("meta"):
        made = build(network, dict.fromkeys((*network.inputs, *network.outputs), (0.0, 1.0)))
    gradient = name.startswith(("thesis-unrolled", "unrolled-gradient", "equal-gradient"))
    assert isinstance(made, UnrolledGradient) == gradient


def test_designs_are_compared_under_equal_conditions():
    """Data, loss, rate, steps and batches are the same; the number of parameters within 3 %."""
    counts = []
    for name in EQUAL:
        recipe = find(name)
        with torch.device("meta"):
            made = build(recipe.network, dict.fromkeys(recipe.network.scaled, (0.0, 1.0)))
        counts.append(sum(parameter.numel() for parameter in made.parameters()))
        same = replace(recipe, network=find(EQUAL[0]).network, summary="", reference="")
        assert same == replace(find(EQUAL[0]), summary="", reference="")
        assert set(NOISE.values()) <= set(recipe.network.inputs) or recipe.network.unrolled
    assert len(counts) == 3
    assert max(counts) < 1.03 * min(counts)


def test_the_thesis_network_unrolls_ten_times_from_4():
    config = find("thesis-unrolled").network.unrolled
    assert config is not None
    assert (config.iterations, config.alpha, config.qsm_row) == (10, 4.0, True)


def test_unknown_recipes_get_the_list_and_a_guess():
    with pytest.raises(InputError, match=r"qsmnet.*Did you mean thesis-unrolled"):
        find("thesis-unroled")
    with pytest.raises(InputError, match="chisep train --help"):
        find("xyz")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"steps_per_epoch": 0},
        {"batch_size": 0},
        {"validation_crops": 0},
        {"saves_per_epoch": 0},
        {"steps_per_epoch": 10, "saves_per_epoch": 4},
    ],
)
def test_recipes_are_checked(wrong):
    with pytest.raises(InputError, match="steps_per_epoch a multiple of saves_per_epoch"):
        replace(find("qsmnet"), **wrong)
