"""The dipole against the two bodies whose field is known: the sphere and the infinite cylinder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chisep.physics.dipole import Dipole, dipole_kernel
from chisep.types import Grid
from tests.physics.battery import check

DIRECTIONS = [(0.0, 0.0, 1.0), (0.0, 0.6, 0.8), (1.0, 1.0, 1.0)]
VOXELS = [(1.0, 1.0, 1.0), (1.0, 1.5, 0.8)]


def positions_mm(grid: Grid) -> torch.Tensor:
    axes = [
        (torch.arange(n, dtype=torch.float64) - n // 2) * v
        for n, v in zip(grid.shape, grid.voxel_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def soft_inside(distance_mm: torch.Tensor, radius_mm: float) -> torch.Tensor:
    """Indicator of a body with an edge a fraction of a voxel wide, so that its volume is right on a grid."""
    return torch.sigmoid((radius_mm - distance_mm) / 0.25)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("voxel_mm", VOXELS)
def test_sphere(direction, voxel_mm, points):
    """Outside χ/3 (a/r)³ (3cos²θ − 1), inside nothing."""
    grid, radius, chi = Grid((64, 64, 64), voxel_mm, direction), 8.0, 1.7
    r = positions_mm(grid)
    distance = r.norm(dim=0)
    cosine = torch.einsum(
        "aijk,a->ijk", r, torch.tensor(grid.b0_direction, dtype=torch.float64)
    ) / distance.clamp(min=1e-9)
    dipole = Dipole(grid, points=points, dtype=torch.float64)
    field = dipole.apply(chi * soft_inside(distance, radius))
    expected = chi / 3 * (radius / distance.clamp(min=1e-9)) ** 3 * (3 * cosine**2 - 1)
    outside = distance > radius + 2
    assert (field - expected)[outside].norm() < 0.05 * expected[outside].norm()
    assert field[distance < radius - 2].abs().max() < 0.03 * chi / 3 * 2


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_field_of_points_is_harmonic_where_no_source_is(direction):
    """A cube with sharp faces, which makes the field of the cut-off spectrum ring where B0 is oblique."""
    grid = Grid((48, 48, 48), (1.0, 1.0, 1.0), direction)
    cube = torch.zeros(grid.shape, dtype=torch.float64)
    cube[4:12, 10:38, 10:38] = 9.0
    roughness = {}
    for points in (True, False):
        field = Dipole(grid, points=points, dtype=torch.float64).apply(cube)
        laplacian = sum(field.diff(n=2, dim=a)[tuple(slice(20, 40) for _ in range(3))] for a in range(3))
        roughness[points] = float(laplacian.std())
    assert roughness[True] < 2e-3
    if min(direction[:2]) > 0:
        assert roughness[True] < 0.1 * roughness[False]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("voxel_mm", VOXELS)
def test_cylinder(direction, voxel_mm):
    """Inside χ/6 (3cos²θ − 1), outside χ/2 (a/ρ)² sin²θ cos 2φ; axis along i, endless by periodicity."""
    grid, radius, chi = Grid((4, 96, 96), voxel_mm, direction), 8.0, 1.3
    b = np.array(grid.b0_direction)
    cos_theta, sin_theta = b[0], math.hypot(b[1], b[2])
    _, y, z = positions_mm(grid)
    distance = torch.hypot(y, z)
    cos_phi = (y * b[1] + z * b[2]) / (sin_theta * distance.clamp(min=1e-9))
    field = Dipole(grid, pad=(False, True, True), dtype=torch.float64).apply(
        chi * soft_inside(distance, radius)
    )
    outside_field = chi / 2 * (radius / distance.clamp(min=1e-9)) ** 2 * sin_theta**2 * (2 * cos_phi**2 - 1)
    outside = (distance > radius + 2) & (distance < 30)
    inside = distance < radius - 2
    assert (field - outside_field)[outside].norm() < 0.05 * outside_field[outside].norm()
    torch.testing.assert_close(
        field[inside].mean(),
        torch.tensor(chi / 6 * (3 * cos_theta**2 - 1), dtype=torch.float64),
        atol=0.01 * chi,
        rtol=0,
    )


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    direction=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda d: math.hypot(*d) > 0.1),
    scale=st.floats(0.1, 10),
)
@settings(max_examples=50, deadline=None)
def test_kernel_bounds_and_scale(shape, direction, scale):
    """D lies in [−2/3, 1/3], has no mean, and knows voxel ratios only, not millimetres."""
    grid = Grid(shape, (1.0, 0.8, 2.0), direction)
    kernel = dipole_kernel(shape, grid.voxel_mm, grid.b0_direction, dtype=torch.float64)
    assert kernel.shape == (shape[0], shape[1], shape[2] // 2 + 1)
    assert kernel[0, 0, 0] == 0
    assert kernel.min() >= -2 / 3 - 1e-12
    assert kernel.max() <= 1 / 3 + 1e-12
    scaled = dipole_kernel(shape, [scale * v for v in grid.voxel_mm], grid.b0_direction, dtype=torch.float64)
    torch.testing.assert_close(kernel, scaled)


def test_turning_volume_and_b0_together_turns_the_field():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 7, 8, generator=generator, dtype=torch.float64)
    field = Dipole(Grid((6, 7, 8), (1.0, 1.2, 1.5), (0.1, 0.2, 0.9)), dtype=torch.float64).apply(x)
    turned = Dipole(Grid((8, 6, 7), (1.5, 1.0, 1.2), (0.9, 0.1, 0.2)), dtype=torch.float64).apply(
        x.permute(2, 0, 1)
    )
    torch.testing.assert_close(turned, field.permute(2, 0, 1))


def test_float32_agrees_with_float64():
    grid = Grid((20, 21, 22), (1.0, 1.0, 2.0), (0.0, 0.5, 0.8))
    x = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = Dipole(grid, dtype=torch.float64).apply(x)
    single = Dipole(grid).apply(x.float())
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()


def test_padding_keeps_edges_apart():
    """A source at one edge acts on the far edge through padding as it would in open space."""
    grid = Grid((32, 8, 8), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0))
    x = torch.zeros(grid.shape)
    x[0, 4, 4] = 1.0
    near_far_edge = Dipole(grid).apply(x)[31, 4, 4]
    wrapped = Dipole(grid, pad=False).apply(x)[31, 4, 4]
    assert near_far_edge.abs() < 0.05 * wrapped.abs()


def test_more_padding_comes_nearer_to_open_space():
    grid = Grid((16, 20, 24), (1.0, 1.0, 1.0), (0.0, 0.6, 0.8))
    assert Dipole(grid, padding=1.5).padded_shape == (24, 30, 36)
    x = torch.randn(grid.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    open_space = Dipole(grid, padding=4.0, dtype=torch.float64).apply(x)
    errors = [
        (Dipole(grid, padding=padding, dtype=torch.float64).apply(x) - open_space).square().mean()
        for padding in (1.0, 1.5, 2.0)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


GRIDS = [
    Grid((3, 4, 5), (1.0, 1.2, 1.5), (0.1, 0.2, 0.9)),
    Grid((3, 4, 5), (1.0, 1.2, 1.5), (0.6, 0.0, 0.8)),
    Grid((3, 4, 5), (2.0, 1.0, 1.0), (0.1, 0.2, 0.9)),
]


@pytest.mark.parametrize("grids", [GRIDS, [GRIDS[0]] * 3, GRIDS[1:2]])
def test_batch_equals_one_by_one(grids):
    x = torch.randn(len(grids), 3, 4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    together = Dipole.of_batch(grids, dtype=torch.float64).apply(x)
    alone = [Dipole(grid, dtype=torch.float64).apply(volume) for grid, volume in zip(grids, x, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_batch_is_a_linear_operator():
    check(Dipole.of_batch(GRIDS[:2], dtype=torch.float64), (2, 3, 4, 5), (2, 3, 4, 5))


@pytest.mark.parametrize("grids", [[GRIDS[0], GRIDS[1].reshaped((3, 4, 6))], []])
def test_batch_wants_one_shape(grids):
    with pytest.raises(ValueError, match="one shape"):
        Dipole.of_batch(grids)
