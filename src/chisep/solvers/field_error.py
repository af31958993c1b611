"""Error of a local field, estimated from the field itself: its spectrum, and its standard deviation by voxel.

Where the dipole D(k) is 0 (the cone at 54.7° to B0), no susceptibility makes a field: what is there is error.
In each shell of |k| the power of the field is E|f(k)|² = N + S·D(k)², with N the power of the error and S
that of the susceptibility. A weighted straight-line fit against D² finds both: the maximum of Whittle's
likelihood (1953, 10.1007/BF02590998). Errors of any cause count, white or not; only those of the longest
wavelengths (above ten voxels) cannot be told from susceptibility: `coarse_error` extrapolates to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.optimize import minimize_scalar
from torch import Tensor

from chisep.physics.dipole import Dipole, half_spectrum, of_half_spectrum
from chisep.physics.operators import Gradient
from chisep.solvers._common import PaddedBox, least_noise_ppm
from chisep.solvers.noise import noise_sigma
from chisep.types import Grid, Maps, MaskVolume, Volume

TAPER_VOXELS = 4.0
"""Distance from the border of the mask over which the window rises: a sharp border would spread the power of
low frequencies over k-space."""
CLOSED_FORM_TAPER_VOXELS = 2.0
"""The same for closed forms, which transform the field with its sharp border: what leaks is error to them."""
_SHELLS, _BINS = 12, 40
_FITS = 30
_LEAST_POWER = 1e-30
"""In ppm²; a field of zeros has none."""
_LARGEST_IN_CONE = 0.1
"""Least D² in a shell, over its mean, up to which error and susceptibility can be told apart."""
_FEWEST_VOXELS = 500
_COARSE_EXPONENT = 3.0
"""Power of a coarse error by |k|^-3: each octave of wavelengths has the same variance, as in real scans."""
_COARSEST = 0.06
"""Wavenumber below which the power no longer rises, over the highest of an axis: 30 voxels."""
_COARSE_SHARE = 0.03
"""Of this power, in data terms. With all of it, total variation leaves too much of the field to the error: it
costs χ in proportion to its amplitude, and a weak error hardly anything. 0.1 is as good in brains."""
_UNSURE = 0.25
"""Excess of a given variance over that found, relative to it, which a white error shows by chance."""
_LEAST_FOUND = 0.1
"""Least part of a given variance that the field has to show as its error."""
_LARGEST_SCALE = 4.0
"""Most by which a coarse error enlarges the scale of |∇χ|."""
_PATTERN_RANGE = (0.5, 4.0)
"""Noise of a voxel over the median: the magnitude of a vessel or of a hole says nothing beyond."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """Power of error and susceptibility in k-space.

    Parameters
    ----------
    points
        Number of k-space points, shape (shell of |k|, bin of D²).
    kernel
        Root mean square of D in each bin, same shape.
    error
        Power N of the error of the field in each shell, in ppm² a voxel, shape (shell, 1).
    source
        Power S of the susceptibility, same unit and shape.
    gradient
        Mean of the squared symbol of `Gradient` in each shell (unit of length: the shortest edge of a voxel),
        same shape.
    first
        First shell in which error and susceptibility can be told apart; coarser ones have its N.
    """

    points: Tensor
    kernel: Tensor
    error: Tensor
    source: Tensor
    gradient: Tensor
    first: int

    @property
    def sigma_ppm(self) -> float:
        """Standard deviation of the error of the field."""
        return math.sqrt(float((self.error * self.points).sum() / self.points.sum()))

    @property
    def chi_gradient_ppm(self) -> float:
        """Root mean square of |∇χ|, in ppm along the shortest edge of a voxel."""
        power = (self.source * self.gradient * self.points).sum() / self.points.sum()
        return math.sqrt(float(power))

    @property
    def white_power(self) -> float:
        """Power of the white part of the error in ppm² a voxel: N of the finer half of the shells."""
        finer = slice(_SHELLS // 2, None)
        return float((self.error * self.points)[finer].sum() / self.points[finer].sum().clamp_min(1))

    @property
    def coarseness(self) -> float:
        """N of the coarsest shell in which it is measured, over the white part; 1 where N does not rise."""
        white = self.white_power
        return max(float(self.error[self.first]) / white, 1.0) if white > 0 else 1.0

    def with_sigma(self, sigma_ppm: float) -> Spectra:
        """Return spectra whose error has a given standard deviation.

        Where it is clearly larger than that of the error found near the cone, the rest is coarse: only that
        can be missed there. Background removal leaves such an error.
        """
        missed = sigma_ppm**2 - self.sigma_ppm**2
        if missed < _UNSURE * self.sigma_ppm**2:
            missed = 0.0
        coarse = min(missed, (1 - _LEAST_FOUND) * sigma_ppm**2)
        shape = _centres().clamp_(min=_COARSEST).pow_(-_COARSE_EXPONENT)[:, None].to(self.error)
        shape /= (shape * self.points).sum() / self.points.sum()
        rest = sigma_ppm**2 - coarse
        own = self.sigma_ppm**2
        scaled = self.error * (rest / own) if own > 0 else torch.full_like(self.error, rest)
        return replace(self, error=scaled + coarse * shape)

    def expected_error(self, inverse: Tensor) -> float:
        """Compute the expected squared error of χ(k) = g(D) f(k): mean of S (1 − g D)² + N g² over k-space.

        Parameters
        ----------
        inverse
            g in each bin, shape (shell, bin).
        """
        bias = self.source * (1 - inverse * self.kernel).square()
        return float(((bias + self.error * inverse.square()) * self.points).sum() / self.points.sum())

    def best_gain(self, inverse: Tensor) -> float:
        """Factor of g(D) at which the expected squared error is least; arguments as of `expected_error`."""
        recovered = inverse * self.kernel
        power = (self.source * recovered.square() + self.error * inverse.square()) * self.points
        return float((self.source * recovered * self.points).sum() / power.sum())


def least_of(expected: Callable[[float], float], low: float, high: float) -> float:
    """Find where a function of a positive number is least, between two limits, on a logarithmic scale."""
    found = minimize_scalar(
        lambda logarithm: expected(math.exp(logarithm)),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(float(found.x))


class FieldError(NamedTuple):
    """Standard deviation of the error of the field in ppm, one number or by voxel, and spectra of the field.

    The spectra are None where the mask has too few voxels.
    """

    sigma_ppm: Volume | float
    spectra: Spectra | None


def field_error(maps: Maps) -> FieldError:
    """Error of the field: σ as given, otherwise estimated with its spatial pattern.

    Parameters
    ----------
    maps
        Field, mask, and optionally σ of the field and a magnitude.

    Returns
    -------
    FieldError
        An estimated σ is a map of shape (i, j, k), 0 outside the mask: proportional to 1/magnitude where
        there is a magnitude, uniform otherwise; of white noise alone in a mask with too few voxels.
    """
    spectra = field_spectra(maps)
    if maps.field_sigma_ppm is not None:
        return FieldError(maps.field_sigma_ppm, spectra)
    found = noise_sigma(maps.field_ppm, maps.mask) if spectra is None else spectra.sigma_ppm
    typical_ppm = max(found, least_noise_ppm(maps.field_ppm, maps.mask))
    return FieldError(typical_ppm * noise_pattern(maps), spectra)


class CoarseError(NamedTuple):
    """Spectrum of the error of the field for a data term.

    `white_part` is the standard deviation of its white part over that of the whole error. `power` is the rest
    in units of the white variance, on the half spectrum of the grid; None for a white error.
    """

    white_part: float
    power: Tensor | None


def coarse_error(error: FieldError, grid: Grid) -> CoarseError:
    """Separate the error of the field into a white and a coarse part.

    Parameters
    ----------
    error
        Of the field.
    grid
        Periodic grid of the data term.

    Returns
    -------
    CoarseError
        The coarse part is N less its white part, by interpolation between the shells. To wavelengths at which
        error and susceptibility cannot be told apart its power is extrapolated by |k|^-3.
    """
    spectra = error.spectra
    if spectra is None or spectra.coarseness <= 1 or spectra.first >= _SHELLS // 2:
        return CoarseError(1.0, None)
    white = spectra.white_power
    excess = (spectra.error[:, 0] / white - 1).clamp_min(0)[spectra.first : _SHELLS // 2]
    centres = _centres()[spectra.first : _SHELLS // 2]
    radius = _radius(grid, torch.float32, torch.device("cpu")).clamp_(min=_COARSEST)
    tiny = torch.finfo(torch.float32).tiny
    power = np.exp(
        np.interp(radius.log().numpy(), centres.log().numpy(), excess.clamp_min(tiny).log().numpy())
    )
    beyond = (radius / centres[0]).clamp_(max=1).pow_(-_COARSE_EXPONENT)
    white_part = min(1.0, math.sqrt(white) / spectra.sigma_ppm)
    return CoarseError(white_part, torch.from_numpy(power).mul_(beyond).mul_(_COARSE_SHARE))


def random_error_ppm(error: FieldError, maps: Maps, generator: torch.Generator) -> Volume:
    """Draw an error of the field: Gaussian, with its spectrum and its σ by voxel; shape (i, j, k), 0 outside.

    Parameters
    ----------
    error
        Of the field.
    maps
        Of the field.
    generator
        On the CPU, so that a seed gives the same error on every device.
    """
    padded = PaddedBox(maps.mask, maps.grid, padding=0.1)
    shape = padded.periodic_grid.shape
    drawn = torch.randn(shape, generator=generator)
    power = coarse_error(error, padded.periodic_grid).power
    if power is not None:
        amplitude = power.div(_COARSE_SHARE).add_(1).sqrt_().to(drawn)
        drawn = of_half_spectrum(half_spectrum(drawn, shape).mul_(amplitude), shape, shape)
    volume = padded.restore(padded.box(drawn)).to(maps.field_ppm)
    return volume.div_(volume[maps.mask].std()).mul_(error.sigma_ppm).mul_(maps.mask)


def gradient_scale_ppm(error: FieldError, over_rms: float) -> float | None:
    """Scale of |∇χ| for the weight of total variation, in ppm along the shortest edge of a voxel.

    Parameters
    ----------
    error
        Of the field.
    over_rms
        The scale over the root mean square of |∇χ|.

    Returns
    -------
    float or None
        None where the field shows no gradient, or the mask has too few voxels.

    Notes
    -----
    It grows with `Spectra.coarseness`. Total variation shrinks what a coarse error hides,
    so with the scale of a white error the whole map is too weak.
    """
    if error.spectra is None or error.spectra.chi_gradient_ppm <= 0:
        return None
    larger = min(error.spectra.coarseness, _LARGEST_SCALE)
    return over_rms * larger * error.spectra.chi_gradient_ppm


def noise_pattern(maps: Maps) -> Volume:
    """Noise of each voxel relative to the median, shape (i, j, k): 1/magnitude, or 1 without one."""
    inside = maps.mask.to(maps.field_ppm)
    if maps.magnitude is None or not bool((maps.magnitude[maps.mask] > 0).any()):
        return inside
    median = maps.magnitude[maps.mask & (maps.magnitude > 0)].median()
    low, high = _PATTERN_RANGE
    return inside * (median / maps.magnitude.clamp_min(median / high)).clamp_(min=low)


def field_spectra(maps: Maps, taper_voxels: float = TAPER_VOXELS) -> Spectra | None:
    """Estimate the power of error and of susceptibility in the local field, by |k|.

    Parameters
    ----------
    maps
        Field and mask; with a magnitude, the error is that of a voxel of the median magnitude. A given σ of
        the field determines the standard deviation of the error (its median), but not its spectrum.
    taper_voxels
        Distance from the border of the mask over which the window rises.

    Returns
    -------
    Spectra or None
        None where the mask has too few voxels.

    Notes
    -----
    The window spreads each point of k-space: D² is convolved with the power of the window before the fit. The
    lowest shells, where that fills the cone, get the error of the next one.
    """
    padded = PaddedBox(maps.mask, maps.grid, padding=0.1)
    mask = padded.cut(maps.mask)
    window = _window(mask, taper_voxels).to(maps.field_ppm)
    if float(window.sum()) < _FEWEST_VOXELS:
        return None
    points, kernel_square, power, gradient = _binned(padded, padded.cut(maps.field_ppm), window)
    error, source, first = _fitted(points, kernel_square, power)
    pattern = padded.cut(noise_pattern(maps))
    typical = float(window.square().sum() / (window * pattern).square().sum())
    spectra = Spectra(points, kernel_square.sqrt(), error * typical, source, gradient, first)
    sigma = maps.field_sigma_ppm
    if sigma is None:
        return spectra
    if isinstance(sigma, Tensor):
        known = sigma[maps.mask & (sigma > 0)]
        return spectra.with_sigma(float(known.median())) if known.numel() else spectra
    return spectra.with_sigma(sigma)


def _window(mask: MaskVolume, taper_voxels: float) -> Tensor:
    """Window of 0 outside the mask and 1 at some distance from its border, on the CPU and moved back."""
    distance = torch.from_numpy(distance_transform_edt(mask.cpu().numpy())).to(mask.device, torch.float32)
    return (distance / taper_voxels).clamp_(max=1).mul_(math.pi / 2).sin_().square_()


def _binned(padded: PaddedBox, field: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count points of k-space and average D² and the power of the field by shell and D², |∇|² by shell.

    Returns
    -------
    tuple of Tensor
        Number of points, D² as the window spreads it, and power in ppm² a voxel, each of shape (shell, bin),
        and the mean squared symbol of the gradient, shape (shell, 1), in double precision on the CPU.
    """
    grid = padded.periodic_grid
    dipole = Dipole(grid, pad=False, dtype=field.dtype, device=field.device)
    mean = (field * window).sum() / window.sum()
    power = dipole.spectrum((field - mean) * window).abs().square_().div_(window.square().sum())
    correlation = _correlation(dipole.spectrum(window).abs().square_(), grid.shape)
    correlation *= _correlation(dipole.kernel.square(), grid.shape) / correlation[0, 0, 0].clone()
    spread = half_spectrum(correlation, grid.shape).real.clamp_(0, 4 / 9)
    shell = (
        _radius(grid, field.dtype, field.device).mul_(_SHELLS / math.sqrt(3)).long().clamp_(max=_SHELLS - 1)
    )
    place = spread.mul(9 / 4).sqrt_().mul_(_BINS).long().clamp_(max=_BINS - 1).add_(shell, alpha=_BINS)
    # The half spectrum holds each point and its mirror image once, but for two planes.
    twice = torch.full((power.shape[-1],), 2.0, dtype=power.dtype, device=power.device)
    twice[0] = 1.0
    if grid.shape[2] % 2 == 0:
        twice[-1] = 1.0

    def total(values: Tensor) -> Tensor:
        weights = values.mul(twice).flatten().double()
        sums = torch.bincount(place.flatten(), weights=weights, minlength=_SHELLS * _BINS)
        return sums.reshape(_SHELLS, _BINS).cpu()

    points = total(torch.ones_like(power))
    symbol = Gradient(grid.voxel_mm).symbol(grid.shape, dtype=field.dtype, device=field.device)
    gradient = total(symbol).sum(1, keepdim=True) / points.sum(1, keepdim=True).clamp_min(1)
    return points, total(spread) / points.clamp_min(1), total(power) / points.clamp_min(1), gradient


def _centres() -> Tensor:
    """|k| in the middle of each shell over the highest frequency of an axis."""
    return (torch.arange(_SHELLS) + 0.5) * (math.sqrt(3) / _SHELLS)


def _radius(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Compute |k| over the highest frequency of an axis, on the half spectrum."""
    square = torch.zeros((), dtype=dtype, device=device)
    for axis, n in enumerate(grid.shape):
        frequency = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
        along = frequency(n, dtype=dtype, device=device).mul_(2).square_()
        square = square + along.reshape([-1 if a == axis else 1 for a in range(3)])
    return square.sqrt()


def _correlation(power: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return of_half_spectrum(torch.complex(power, torch.zeros_like(power)), shape, shape)


def _fitted(points: Tensor, kernel_square: Tensor, power: Tensor) -> tuple[Tensor, Tensor, int]:
    """Fit power = N + S D² in each shell by maximum likelihood, with N, S ≥ 0; each of shape (shell, 1).

    The last value is the first shell in which both can be told apart.

    Powers of a random field are exponentially distributed: their variance is the square of their mean.
    """

    def mean(values: Tensor, weights: Tensor) -> Tensor:
        total: Tensor = (values * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(tiny)
        return total

    tiny = torch.finfo(power.dtype).tiny
    expected = mean(power, points).expand_as(power)
    least = (1e-3 * expected).clamp_min(_LEAST_POWER)
    error = source = torch.zeros_like(expected[:, :1])
    for _ in range(_FITS):
        weights = points / torch.maximum(expected, least).square()
        weights = weights / weights.sum(1, keepdim=True).clamp_min(tiny)
        x, y = mean(kernel_square, weights), mean(power, weights)
        slope = mean((kernel_square - x) * (power - y), weights)
        slope = (slope / mean((kernel_square - x).square(), weights).clamp_min(tiny)).clamp_min(0)
        at_0 = y - slope * x
        through_0 = mean(kernel_square * power, weights) / mean(kernel_square.square(), weights).clamp_min(
            tiny
        )
        source = torch.where(at_0 < 0, through_0, slope)
        error = at_0.clamp_min(0)
        expected = error + source * kernel_square
    least_square = torch.where(points > 0, kernel_square, torch.inf).amin(1, keepdim=True)
    usual, mean_power = mean(kernel_square, points), mean(power, points)
    filled = least_square > _LARGEST_IN_CONE * usual
    for shell in range(_SHELLS - 2, -1, -1):
        if filled[shell] or (shell == 0 and error[0] < error[1]):
            error[shell] = torch.minimum(error[shell + 1], mean_power[shell])
            source[shell] = ((mean_power - error) / usual.clamp_min(tiny)).clamp_min(0)[shell]
    # Spectra of tissue fall with |k|; where error is strong, the fit in single shells varies.
    first = int((~filled.flatten()).int().argmax())
    return error, source.cummin(0).values, first
