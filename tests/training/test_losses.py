from __future__ import annotations

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.networks.config import SOURCES
from chisep.physics.dipole import Dipole
from chisep.training.losses import UNIT_PPM, LossConfig, loss_terms, total_loss
from chisep.types import Grid

SHAPE = (5, 6, 4)
GRIDS = [Grid(SHAPE, (1.0, 1.0, 1.5), b0) for b0 in ((0.0, 0.0, 1.0), (0.0, 0.6, 0.8), (1.0, 1.0, 1.0))]
GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.rand(3, 1, *SHAPE, generator=GENERATOR) > torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1, 1)
PREDICTED, LABEL = 0.1 * torch.randn(2, 3, 2, *SHAPE, generator=GENERATOR, dtype=torch.float64)
CONFIG = LossConfig()
NAMES = ["label", "gradient", "field", "chi", "r2prime"]


def terms(predicted=PREDICTED, label=LABEL, mask=MASK, grids=GRIDS, outputs=SOURCES, config=CONFIG):
    dipole = Dipole.of_batch(grids, dtype=torch.float64)
    return loss_terms(predicted, label, mask, outputs, dipole, config)


def naive(name: str, number: int) -> float:
    """A term of one volume by loops in NumPy, in ppm."""
    error = (PREDICTED - LABEL)[number].numpy()
    mask = MASK[number, 0].numpy()
    chi = error[0] - error[1]
    if name == "label":
        return float(np.abs(error[:, mask]).mean())
    if name == "chi":
        return float(np.abs(chi[mask]).mean())
    if name == "r2prime":
        return float(np.abs(error.sum(0)[mask]).mean())
    if name == "field":
        field = Dipole(GRIDS[number], dtype=torch.float64).apply(torch.from_numpy(chi * mask)).numpy()
        return float(np.abs(field[mask]).mean())
    means = []
    for axis in range(3):
        differences = []
        for here in np.argwhere(mask):
            there = here + np.eye(3, dtype=int)[axis]
            if (there < SHAPE).all() and mask[tuple(there)]:
                differences += [abs(e[tuple(there)] - e[tuple(here)]) for e in error]
        means.append(np.mean(differences) if differences else 0.0)
    return float(np.mean(means))


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_what_they_say(name):
    """Mean over the brain of each volume."""
    expected = [naive(name, number) / UNIT_PPM for number in range(3)]
    assert terms()[name].tolist() == pytest.approx(expected, rel=1e-9)


def test_is_0_for_the_label_itself():
    assert not any(term.any() for term in terms(predicted=LABEL).values())


def test_what_lies_outside_the_brain_does_not_count():
    moved = PREDICTED + 5.0 * ~MASK
    for name, term in terms(predicted=moved).items():
        torch.testing.assert_close(term, terms()[name])


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_a_batch_is_the_mean_of_its_volumes(power):
    """So that devices which share a batch have the loss of the whole."""
    config = LossConfig(power=power)
    each = [
        total_loss(terms(PREDICTED[n : n + 1], LABEL[n : n + 1], MASK[n : n + 1], GRIDS[n : n + 1]), config)
        for n in range(3)
    ]
    torch.testing.assert_close(total_loss(terms(), config), torch.stack(each).mean())


def test_a_power_gives_small_errors_more_weight():
    """Ratio of the slopes of two volumes, one with a hundredth of the error."""
    slopes = {}
    for power in (1.0, 0.5):
        predicted = (
            LABEL + torch.tensor([1.0, 0.01, 1.0]).reshape(3, 1, 1, 1, 1) * PREDICTED
        ).requires_grad_()
        total_loss(terms(predicted), LossConfig(power=power)).backward()
        slopes[power] = float(predicted.grad[1].abs().mean() / predicted.grad[0].abs().mean())
    assert slopes[0.5] == pytest.approx(10 * slopes[1.0], rel=0.2)


def test_an_empty_crop_has_no_loss():
    empty = torch.zeros_like(MASK)
    assert not any(term.any() for term in terms(mask=empty).values())


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (SOURCES, set(NAMES)),
        (("chi",), {"label", "gradient", "field"}),
        (("r2prime",), {"label", "gradient"}),
    ],
)
def test_terms_that_mean_something_for_the_outputs(outputs, expected):
    n = len(outputs)
    assert set(terms(PREDICTED[:, :n], LABEL[:, :n], outputs=outputs)) == expected


def test_field_of_a_chi_network():
    """The same as that of sources with that χ."""
    nothing = torch.zeros_like(PREDICTED[:, 1:])
    chi = terms(PREDICTED[:, :1], LABEL[:, :1], outputs=("chi",))
    sources = terms(torch.cat((PREDICTED[:, :1], nothing), 1), torch.cat((LABEL[:, :1], nothing), 1))
    torch.testing.assert_close(chi["field"], sources["field"])


def test_terms_are_weighed_and_added():
    config = LossConfig(label=2.0, gradient=0.3, field=0.7, chi=0.0, r2prime=1.1)
    found = terms(config=config)
    assert set(found) == set(NAMES) - {"chi"}
    expected = 2 * found["label"] + 0.3 * found["gradient"] + 0.7 * found["field"] + 1.1 * found["r2prime"]
    torch.testing.assert_close(total_loss(found, config), expected.mean())


def test_gradients_pull_towards_the_label():
    predicted = PREDICTED.clone().requires_grad_()
    total_loss(terms(predicted), CONFIG).backward()
    assert torch.isfinite(predicted.grad).all()
    assert not (predicted.grad * ~MASK).any()
    step = predicted.detach() - 1e-4 * predicted.grad
    assert total_loss(terms(step), CONFIG) < total_loss(terms(), CONFIG)


@pytest.mark.parametrize(
    "weights",
    [
        {"label": -1.0},
        dict.fromkeys(NAMES, 0.0),
        {"chi": float("nan")},
        {"power": 0.0},
        {"power": 2.0},
    ],
)
def test_weights_are_checked(weights):
    with pytest.raises(InputError, match="Correct them"):
        LossConfig(**weights)
