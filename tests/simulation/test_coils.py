from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from chisep.simulation.coils import coil_sensitivities, combined_sensitivity, transmit_field, with_noise


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def roughness(volume: torch.Tensor, mask: torch.Tensor) -> float:
    """Largest step between neighbours in the mask."""
    steps = []
    for axis in range(3):
        both = mask.narrow(axis, 1, mask.shape[axis] - 1) & mask.narrow(axis, 0, mask.shape[axis] - 1)
        steps.append(float(volume.diff(dim=axis).abs()[both].max()))
    return max(steps)


@pytest.mark.parametrize("b0_t", [1.5, 3.0, 7.0])
def test_transmit_field_has_the_asked_spread_that_grows_with_b0(tissue, b0_t):
    b1 = transmit_field(tissue.grid, tissue.mask, b0_t, 0.1, rng())
    inside = b1[tissue.mask]
    assert float(inside.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(inside.std()) == pytest.approx(0.1 * b0_t / 3, rel=0.02)
    assert float(b1.min()) >= 0.05
    assert roughness(b1, tissue.mask) < 0.1 * float(inside.max() - inside.min())


def test_transmit_field_is_bright_in_the_middle_and_differs_between_people(tissue):
    one, same, other = (transmit_field(tissue.grid, tissue.mask, 3.0, 0.1, rng(s)) for s in (0, 0, 1))
    i, j, k = tissue.mask.nonzero().float().mean(0).round().int().tolist()
    assert float(one[i, j, k]) > 1.0 > float(one[tissue.mask].quantile(0.3))
    torch.testing.assert_close(one, same)
    assert float((one - other)[tissue.mask].abs().max()) > 0.01


@pytest.mark.parametrize("count", [1, 8])
def test_combined_sensitivity_is_the_root_sum_of_squares_with_a_smooth_phase(tissue, count):
    grid, mask = tissue.grid, tissue.mask
    coils = torch.stack(list(coil_sensitivities(grid, mask, count, rng())))
    combined = combined_sensitivity(grid, mask, count, rng())
    squares = coils.abs().square().sum(0).sqrt()
    torch.testing.assert_close(combined.abs(), squares / squares[mask].mean())
    turn = combined / combined.abs()
    assert roughness(turn, mask) < 0.3
    if count > 1:
        assert float((coils[0] - coils[1]).abs().max()) > 0.1 * float(coils.abs().max())


def coil_by_coil(signal: complex, coils: np.ndarray, sigma: float, size: int) -> tuple[np.ndarray, ...]:
    """Oracle: an image of every coil, then both combinations."""
    generator = rng(5)
    noise = generator.standard_normal((2, len(coils), size)) * sigma
    images = coils[:, None] * signal + noise[0] + 1j * noise[1]
    norm = np.sqrt((abs(coils) ** 2).sum())
    return (coils.conj() @ images) / norm, np.sqrt((abs(images) ** 2).sum(0))


@pytest.mark.parametrize("strength", [0.0, 1.0, 6.0])
def test_noise_is_that_of_combined_coil_images(strength):
    coils = np.array([1.0, 0.5j, -0.3 + 0.4j, 0.2])
    norm = float(np.sqrt((abs(coils) ** 2).sum()))
    matched, squares = coil_by_coil(strength, coils, 1.0, 20000)
    clean = torch.full((1, 20, 20, 50), strength * norm, dtype=torch.complex64)
    adaptive = with_noise(clean.clone(), 1.0, rng(1))[0].flatten().numpy()
    rooted = with_noise(clean.clone(), 1.0, rng(1), more_coils=3)[0].flatten().numpy()
    for got, expected in (
        (adaptive.real, matched.real),
        (adaptive.imag, matched.imag),
        (abs(rooted), squares),
    ):
        assert stats.ks_2samp(got, expected).pvalue > 1e-3
    np.testing.assert_allclose(np.angle(rooted), np.angle(adaptive), atol=1e-5)
