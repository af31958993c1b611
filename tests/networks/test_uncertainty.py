"""Standard deviations by how noisy a scan is."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from chisep.networks.config import PHI_ROWS, SOURCES, NetworkConfig
from chisep.networks.uncertainty import CHI_FACTOR, chi_sigma, factor_at, noise_level, noise_of
from chisep.networks.unrolled_proximal import UnrolledProximalConfig
from chisep.networks.weights import read_header

PAIRS = [[0.005, 1.0], [0.02, 2.0], [0.04, 1.5]]


def test_factors_are_linear_in_the_logarithm_of_the_noise_and_constant_beyond():
    assert factor_at(PAIRS, 0.01) == pytest.approx(1.5)
    assert factor_at(PAIRS, 0.02 * math.sqrt(2)) == pytest.approx(1.75)
    assert [factor_at(PAIRS, level) for level in (0.001, 0.005, 0.04, 1.0)] == [1.0, 1.0, 1.5, 1.5]
    assert factor_at(PAIRS[:1], 0.3) == factor_at(1.0, 0.3) == 1.0


def test_the_noise_of_a_scan_is_that_of_voxels_that_were_measured():
    assert noise_level(torch.tensor([0.0, 0.0, 0.0, 0.01, 0.02, 0.3])) == pytest.approx(0.02)
    assert noise_level(torch.zeros(3)) == 1.0


def test_noise_of_the_first_map():
    proximal = UnrolledProximalConfig()
    rows = ("r2prime", "field")
    with_noise = NetworkConfig((*rows, "r2prime_sigma", "field_sigma"), SOURCES, proximal=proximal)
    assert noise_of(with_noise) == "r2prime_sigma"
    assert noise_of(NetworkConfig(("field", "field_sigma"), ("chi",), proximal=proximal)) == "field_sigma"
    assert noise_of(NetworkConfig(rows, SOURCES, proximal=proximal)) is None
    assert noise_of(NetworkConfig(PHI_ROWS, SOURCES)) is None


def _header(factors) -> dict:
    network = asdict(NetworkConfig(("field",), ("chi",)))
    listed = {n: list(v) if isinstance(v, tuple) else v for n, v in network.items()}
    return {"network": listed, "statistics": {}, "sigma_factors": {"chi": factors}}


@pytest.mark.parametrize("value", [1.5, 2, PAIRS, PAIRS[:1]])
def test_factors_of_a_file(value):
    assert read_header(_header(value)).sigma_factors


@pytest.mark.parametrize(
    "value",
    [
        *(0.0, -1.0, math.inf, math.nan, True, "1", None),
        *([], [1.0, 2.0], [[0.01]], [[0.01, 1.0, 2.0]], [[0.0, 1.0]], [[0.01, 0.0]], [["a", 1.0]]),
        *([[0.02, 1.0], [0.01, 1.0]], [[0.01, 1.0], [0.01, 2.0]]),
    ],
)
def test_what_are_no_factors(value):
    with pytest.raises(ValueError, match=r"sigma_factors"):
        read_header(_header(value))


def test_sigma_of_chi_is_that_of_uncorrelated_errors_times_its_factor():
    found = chi_sigma(torch.tensor([0.003, 0.0]), torch.tensor([0.004, 0.0]))
    assert found.tolist() == pytest.approx([CHI_FACTOR * 0.005, 0.0])
