"""Rigid registration of two scans of different contrast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits
from torch import Tensor

from chisep.errors import InputError
from chisep.preprocessing.head_size import adult_affine, adult_lengths
from chisep.preprocessing.morphology import eroded
from chisep.types import Affine, Echoes, Grid, MaskVolume

MovingEchoes = Float[Tensor, "moving a b c"]
"""Volumes of another scan, on a grid of their own."""
Points = Float[np.ndarray, "point 3"]
"""Coordinates of points, in mm or in voxels."""
Values = Float[np.ndarray, " point"]
"""One number at every point."""
_Volume = Float[np.ndarray, "x y z"]
_Terms = Float[np.ndarray, "point term"]
_FEWEST_POINTS = 500
_COARSE_POINTS = 20_000
_DARKEST = 0.01
"""Signals below this fraction of the median are clipped before their logarithm is taken."""
_RADIUS_MM = 60.0
"""About the radius of a head: scales positions to order 1, and angles to mm."""
_ROBUST = 3.0
_RIDGE = 1e-9
"""Relative; it affects only what the points do not determine, such as position terms across a thin slab."""
_CONTRAST_DEGREE = 3
_COARSE_POSITION_DEGREE, _POSITION_DEGREE = 4, 8
_SAME_AGREEMENT = 0.002
"""A smaller loss of agreement is noise: the scans need no registration."""
_SEARCH_POINTS, _TRIED_STARTS, _SEARCH_STEPS = 5_000, 6, 8
_SOUND_CONTRAST, LEAST_CONTRAST = 0.3, 0.15
"""Shared contrast from which a registration is accepted without a word, and with a warning.

Measured on a simulated head (2.5 mm) whose spin echo was moved by up to 20 mm and 15°, noisy, cut to
slabs, or single echoes. Correct estimates (at most 2 mm off): 0.70 without noise, 0.61 at SNR 20, 0.42
to 0.50 at SNR 10 in whole heads and slabs of 15 to 100 mm, 0.23 at SNR 5, 0.38 for the first echo
alone. Wrong estimates (10 mm off or more): below 0.02 beyond the capture range and for flipped or
permuted axes, at most 0.10 for affines of MNI; 0.17 and 0.20 where the iterations ended too early; 0.26
for a scan whose voxels are 15 % too large."""


@dataclass(frozen=True)
class RegistrationConfig:
    """Settings of the rigid registration."""

    smoothing_mm: tuple[float, ...] = (6.0, 3.0)
    """SD in mm of the Gaussian that smooths both images, coarse to fine; the last level, half the edge of a
    cube as large as a voxel, is added automatically."""
    points: int = 60_000
    """Number of points in the brain at which the images are compared, on the last level."""
    rim_mm: float = 3.0
    """Rim of the mask in mm that is left out: partial volumes of skull and CSF differ most between scans."""
    iterations: int = 12
    """Maximum number of steps on each level."""
    tolerance_mm: float = 0.005
    """A level ends when a step moves the brain by less."""
    max_shift_mm: float = 30.0
    """Largest shift of the brain's centre that is accepted."""
    max_rotation_deg: float = 20.0
    """Largest rotation that is accepted."""
    seed: int = 0
    """Seed of the random points."""

    def __post_init__(self) -> None:
        sizes = (*self.smoothing_mm, self.tolerance_mm, self.max_shift_mm, self.max_rotation_deg)
        if not all(math.isfinite(value) and value > 0 for value in sizes):
            raise InputError(
                "registration: smoothing, tolerance and limits",
                found=f"{sizes}",
                expected="numbers above 0",
                fix="Leave them at their defaults.",
            )
        if self.points < _FEWEST_POINTS or self.iterations < 1 or self.seed < 0 or not self.rim_mm >= 0:
            raise InputError(
                "registration: points, iterations, seed and rim",
                found=f"{self.points}, {self.iterations}, {self.seed}, {self.rim_mm} mm",
                expected=f"at least {_FEWEST_POINTS}, 1, 0 and 0 mm",
                fix="Leave them at their defaults.",
            )


@dataclass(frozen=True, eq=False)
class Rigid:
    """Rigid transform between the head positions of two scans.

    Parameters
    ----------
    fixed_to_moving_mm
        World mm of a point of the head in the fixed scan to its world mm in the moving scan, shape (4, 4).
    centre_mm
        Centre of the brain in the fixed scan, world mm.
    displacement_mm
        Largest distance by which a point of the brain moved.
    agreement_before, agreement
        Fraction of the moving image's variance that the fixed scan explains, by the headers and after
        registration; NaN where the scans do not overlap.
    contrast_before, contrast
        Shared contrast, by the headers and after registration: fraction of the moving image's variance about
        what is smooth in space that the fixed scan explains; NaN where the scans do not overlap.
    found
        Whether the estimate is accepted; if not, the transform is the identity.
    warnings
        Why it is not accepted, or doubtful.
    """

    fixed_to_moving_mm: Affine = field(default_factory=lambda: np.eye(4))
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    displacement_mm: float = 0.0
    agreement_before: float = math.nan
    agreement: float = math.nan
    contrast_before: float = math.nan
    contrast: float = math.nan
    found: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def rotation_deg(self) -> float:
        """Angle of the rotation about its axis."""
        return math.degrees(Rotation.from_matrix(self.fixed_to_moving_mm[:3, :3]).magnitude())

    @property
    def translation_mm(self) -> tuple[float, float, float]:
        """Shift of the centre of the brain along world x, y and z."""
        centre = np.asarray(self.centre_mm)
        x, y, z = self.fixed_to_moving_mm[:3, :3] @ centre + self.fixed_to_moving_mm[:3, 3] - centre
        return float(x), float(y), float(z)


def register(
    moving: MovingEchoes,
    moving_affine: Affine,
    fixed: Echoes,
    fixed_affine: Affine,
    *,
    mask: MaskVolume,
    config: RegistrationConfig | None = None,
    length_scale: float = 1.0,
    starts: Sequence[Affine] = (),
) -> Rigid:
    """Rigid registration of two scans of different contrast.

    The logarithm of the moving image (root of the sum of squares of its echoes) is regressed on that of the
    first, middle and last echo of the fixed scan, as a polynomial of third degree, and on a polynomial of
    position (of fourth degree, of eighth on the last level), which models coil sensitivities. The prediction
    has the moving image's contrast, so least squares estimate the motion: Gauss–Newton from coarse to fine,
    each step with a new prediction and robust weights. Without the position terms the coils, which do not
    move with the head, bias the estimate toward no motion.

    Parameters
    ----------
    moving
        Echoes (magnitude) of the moving scan, shape (echo, i, j, k) on its own grid.
    moving_affine
        Its voxel index to world mm, shape (4, 4).
    fixed
        Echoes (magnitude) of the fixed scan, shape (echo, i, j, k).
    fixed_affine
        Its voxel index to world mm, shape (4, 4).
    mask
        Brain in the fixed scan, shape (i, j, k).
    config
        Options; defaults where None.
    length_scale
        Length of the head relative to an adult's, as `chisep.preprocessing.head_size` finds it.
    starts
        Further first estimates beside the identity, world mm to world mm; the best on the coarsest level is
        refined. For scans that lie far from each other.

    Returns
    -------
    Rigid
        The identity, with a warning, where the estimate is worse than the headers, beyond the limits, or
        too little of the brain is in both scans.
    """
    # With several threads the last digits of long sums vary; the result must not.
    with threadpool_limits(limits=1, user_api="blas"):
        found = _registered(
            moving,
            adult_affine(moving_affine, length_scale),
            fixed,
            adult_affine(fixed_affine, length_scale),
            mask,
            adult_lengths(config or RegistrationConfig(), length_scale),
            [_enlarged(start, length_scale) for start in starts],
        )
    return _shrunk(found, length_scale)


def _enlarged(transform: Affine, scale: float) -> Affine:
    enlarged = transform.copy()
    enlarged[:3, 3] /= scale
    return enlarged


def _shrunk(found: Rigid, scale: float) -> Rigid:
    """Motion of a head that was enlarged to an adult's, in the mm of the scan."""
    if scale == 1:
        return found
    transform = found.fixed_to_moving_mm.copy()
    transform[:3, 3] *= scale
    x, y, z = found.centre_mm
    return replace(
        found,
        fixed_to_moving_mm=transform,
        centre_mm=(x * scale, y * scale, z * scale),
        displacement_mm=found.displacement_mm * scale,
    )


# Long because each way to reject an estimate ends here.
def _registered(
    moving: MovingEchoes,
    moving_affine: Affine,
    fixed: Echoes,
    fixed_affine: Affine,
    mask: MaskVolume,
    config: RegistrationConfig,
    starts: Sequence[Affine],
) -> Rigid:
    centre_mm, reach_mm = _extent(mask, fixed_affine)
    rng = np.random.default_rng(config.seed)
    reference = _FixedScan(fixed, fixed_affine, mask, config.rim_mm)
    echoes = moving.detach().cpu().numpy()
    image = np.sqrt(np.square(echoes).sum(0, dtype=np.float32))
    finest_mm = 0.5 * max(math.cbrt(abs(np.linalg.det(a[:3, :3]))) for a in (fixed_affine, moving_affine))
    coarse = sorted((mm for mm in config.smoothing_mm if mm > finest_mm), reverse=True)
    estimate, before, after = np.eye(4), _Fit(), _Fit()
    if starts:
        first_mm = coarse[0] if coarse else finest_mm
        with ThreadPoolExecutor(1) as pool:
            points_mm, signals = reference.sampled(first_mm, moving_affine, _SEARCH_POINTS, rng, pool)
        smooth = _smoothed(image, moving_affine, first_mm, fixed_affine)
        level = _Level(points_mm, signals, smooth, moving_affine, _COARSE_POSITION_DEGREE)
        estimate = level.best_of([np.eye(4), *starts])
    for smoothing_mm in (*coarse, finest_mm):
        last = smoothing_mm == finest_mm
        count = config.points if last else min(config.points, _COARSE_POINTS)
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            smoothing = pool.submit(_smoothed, image, moving_affine, smoothing_mm, fixed_affine)
            points_mm, signals = reference.sampled(smoothing_mm, moving_affine, count, rng, pool)
            smooth = smoothing.result()
        degree = _POSITION_DEGREE if last else _COARSE_POSITION_DEGREE
        level = _Level(points_mm, signals, smooth, moving_affine, degree)
        before = level.fit(np.eye(4))
        for _ in range(config.iterations):
            step = level.step(estimate)
            if step is None:
                return _rejected(centre_mm, before, "too little of the brain is in both scans")
            estimate = step @ estimate
            if _largest_move_mm(step, points_mm) < config.tolerance_mm:
                break
        after = level.fit(estimate)
    result = Rigid(
        estimate,
        centre_mm,
        _largest_move_mm(estimate, reach_mm),
        before.agreement,
        after.agreement,
        before.contrast,
        after.contrast,
    )
    shift_mm, rotation_deg = math.hypot(*result.translation_mm), result.rotation_deg
    if not shift_mm <= config.max_shift_mm or not rotation_deg <= config.max_rotation_deg:
        return _rejected(centre_mm, before, f"it found {shift_mm:.0f} mm and {rotation_deg:.0f}°")
    if not after.agreement >= (-math.inf if math.isnan(before.agreement) else before.agreement):
        if before.agreement - after.agreement < _SAME_AGREEMENT:
            return Rigid(
                centre_mm=centre_mm,
                agreement_before=before.agreement,
                agreement=before.agreement,
                contrast_before=before.contrast,
                contrast=before.contrast,
            )
        found = f"images agree less after it ({after.agreement:.3f} < {before.agreement:.3f})"
        return _rejected(centre_mm, before, found)
    if not after.contrast >= LEAST_CONTRAST:
        found = (
            f"it found {shift_mm:.0f} mm and {rotation_deg:.0f}°, where the scans share too little contrast "
            f"({after.contrast:.2f} < {LEAST_CONTRAST:g})"
        )
        return _rejected(centre_mm, before, found)
    if after.contrast < _SOUND_CONTRAST:
        doubt = (
            f"the registration of the scans is doubtful: they share little contrast ({after.contrast:.2f} < "
            f"{_SOUND_CONTRAST:g}), as very noisy or wrongly placed ones do; look at the report's figure"
        )
        result = replace(result, warnings=(doubt,))
    return result


def _rejected(centre_mm: tuple[float, float, float], before: _Fit, why: str) -> Rigid:
    return Rigid(
        centre_mm=centre_mm,
        agreement_before=before.agreement,
        agreement=before.agreement,
        contrast_before=before.contrast,
        contrast=before.contrast,
        found=False,
        warnings=(f"the registration of the scans failed: {why}; the alignment of the headers is kept",),
    )


def _edges_mm(affine: Affine) -> list[float]:
    return [float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0)]


def _apply(transform: Affine, points: Points) -> Points:
    return np.asarray(points @ transform[:3, :3].T + transform[:3, 3])


def _largest_move_mm(transform: Affine, points_mm: Points) -> float:
    return float(np.linalg.norm(_apply(transform, points_mm) - points_mm, axis=1).max())


def _extent(mask: MaskVolume, affine: Affine) -> tuple[tuple[float, float, float], Points]:
    """Centre of the brain in world mm, and its outermost points."""
    inside = mask.cpu().numpy()
    if not inside.any():
        raise InputError(
            "brain mask", found="an empty mask", expected="the brain", fix="Check the brain mask."
        )
    counts = [inside.sum(axis=axes, dtype=np.int64) for axes in ((1, 2), (0, 2), (0, 1))]
    centre = np.array([[count @ np.arange(len(count)) / count.sum() for count in counts]])
    x, y, z = _apply(affine, centre)[0]
    # The largest displacement of a rigid motion is at an extreme point along one of enough directions. These
    # are first or last voxels of the lines along the third axis.
    lines = np.argwhere(inside.any(axis=2))
    of_line = inside[lines[:, 0], lines[:, 1]]
    ends = np.stack([of_line.argmax(1), of_line.shape[1] - 1 - of_line[:, ::-1].argmax(1)], axis=1)
    index = np.concatenate([lines.repeat(2, axis=0), ends.reshape(-1, 1)], axis=1).astype(np.float64)
    directions = np.stack(list(itertools.product((-1, 0, 1), repeat=3)))
    outermost = np.unique((index @ directions.T).argmax(0))
    return (float(x), float(y), float(z)), _apply(affine, np.unique(index[outermost], axis=0))


def _smoothed(image: _Volume, affine: Affine, smoothing_mm: float, other_affine: Affine) -> _Volume:
    """Gaussian smoothing of an image, with more along axes where the other image has longer voxels."""
    own = affine[:3, :3]
    edges_mm = np.asarray(_edges_mm(affine))
    # A voxel averages over its edges: a variance of a twelfth of their square.
    other_mm2 = np.square((own / edges_mm).T @ other_affine[:3, :3]).sum(1) / 12
    missing_mm2 = np.maximum(other_mm2 - np.square(edges_mm) / 12, 0)
    sigma = np.sqrt(smoothing_mm**2 + missing_mm2) / edges_mm
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0))


def _sampled(volume: _Volume, voxels: Points) -> Values:
    return np.asarray(ndimage.map_coordinates(volume, voxels.T, order=1, mode="nearest"), dtype=np.float64)


class _FixedScan:
    """The fixed scan: its echoes near the brain, and the voxels from which points are drawn."""

    def __init__(self, echoes: Echoes, affine: Affine, mask: MaskVolume, rim_mm: float) -> None:
        i_mm, j_mm, k_mm = _edges_mm(affine)
        index = mask.nonzero()
        # Smoothing needs the neighbourhood only.
        border = [math.ceil(12 / edge) for edge in (i_mm, j_mm, k_mm)]
        low = [max(int(index[:, a].min()) - border[a], 0) for a in range(3)]
        i, j, k = (slice(low[a], int(index[:, a].max()) + 1 + border[a]) for a in range(3))
        count = len(echoes)
        chosen = sorted({0, count // 2, count - 1})
        self.echoes = [echoes[number, i, j, k].detach().cpu().numpy() for number in chosen]
        inside = mask[i, j, k].cpu().numpy()
        if not inside.all():
            core = eroded(inside, rim_mm, Grid(inside.shape, (i_mm, j_mm, k_mm)))
            inside = core if np.count_nonzero(core) >= _FEWEST_POINTS else inside
        self.inside = np.argwhere(inside).astype(np.float64)
        self.affine = affine.copy()
        self.affine[:3, 3] = affine[:3, :3] @ low + affine[:3, 3]

    def sampled(
        self,
        smoothing_mm: float,
        other_affine: Affine,
        count: int,
        rng: np.random.Generator,
        pool: ThreadPoolExecutor,
    ) -> tuple[Points, list[Values]]:
        """Random points between voxel centres in world mm, and the smoothed echoes there.

        At voxel centres only the moving image would be blurred by interpolation, which biases the estimate.
        """
        chosen = rng.choice(len(self.inside), min(count, len(self.inside)), replace=False)
        voxels = self.inside[chosen] + rng.uniform(-0.5, 0.5, (len(chosen), 3))

        def signal(echo: _Volume) -> Values:
            return _sampled(_smoothed(echo, self.affine, smoothing_mm, other_affine), voxels)

        return _apply(self.affine, voxels), list(pool.map(signal, self.echoes))


@dataclass(frozen=True)
class _Fit:
    """How well the fixed scan explains the moving one: all of it, and what is not smooth in space."""

    agreement: float = math.nan
    contrast: float = math.nan


class _Level:
    """One resolution level: points of the fixed scan, and the moving image."""

    def __init__(
        self,
        points_mm: Points,
        signals: Sequence[Values],
        moving: _Volume,
        moving_affine: Affine,
        position_degree: int,
    ) -> None:
        self.points_mm, self.moving = points_mm, moving
        self.to_voxels = np.linalg.inv(moving_affine)
        self.slopes = [np.asarray(slope) for slope in np.gradient(moving)]
        logs = [np.log(np.maximum(s, max(_DARKEST * float(np.median(s)), 1e-30))) for s in signals]
        logs = [(log - log.mean()) / max(float(log.std()), 1e-12) for log in logs]
        position = (points_mm - points_mm.mean(0)) / _RADIUS_MM
        of_contrast = _monomials(logs, _CONTRAST_DEGREE)
        terms = [np.ones(len(points_mm)), *of_contrast]
        terms += _monomials(list(position.T), position_degree)
        self.terms = np.stack(terms, 1)
        self.smooth_terms = [0, *range(1 + len(of_contrast), len(terms))]

    def _visible(self, transform: Affine) -> tuple[Points, NDArray[np.bool_]]:
        """Voxel coordinates of the points in the moving image, and which of them it covers."""
        voxels = _apply(self.to_voxels @ transform, self.points_mm)
        ends = np.asarray(self.moving.shape) - 1
        inside: NDArray[np.bool_] = np.all((voxels >= 0) & (voxels <= ends), axis=1)
        return voxels, inside

    def _terms_of(self, seen: NDArray[np.bool_]) -> _Terms:
        """Terms of the points that the moving image covers; no copy where it covers all."""
        return self.terms if seen.all() else self.terms[seen]

    def _predicted(self, terms: _Terms, values: Values) -> Values:
        """Predict the moving image from the fixed scan."""
        return self._predictions(terms, values)[0]

    def _predictions(self, terms: _Terms, values: Values, *others: list[int]) -> list[Values]:
        """Predict the moving image by all terms, and by others of them."""
        middle = max(float(np.median(values)), 1e-30)
        log = np.log(np.maximum(values, _DARKEST * middle))
        # The noise of a logarithm is the relative noise of the signal.
        weight = np.minimum(values / middle, 2.0)
        weighted = terms * np.square(weight)[:, None]
        normal = weighted.T @ terms
        normal += _RIDGE * np.diag(np.diag(normal))
        right = weighted.T @ log
        low, high = log.min(), log.max()
        predictions = [np.asarray(np.exp(np.clip(terms @ np.linalg.solve(normal, right), low, high)))]
        for chosen in others:
            factors = np.zeros(len(right))
            factors[chosen] = np.linalg.solve(normal[np.ix_(chosen, chosen)], right[chosen])
            predictions.append(np.asarray(np.exp(np.clip(terms @ factors, low, high))))
        return predictions

    def fit(self, transform: Affine) -> _Fit:
        """Parts of the moving image's variance that are explained; NaN without overlap."""
        voxels, seen = self._visible(transform)
        if np.count_nonzero(seen) < _FEWEST_POINTS:
            return _Fit()
        values = _sampled(self.moving, voxels[seen])
        predicted, smooth = self._predictions(self._terms_of(seen), values, self.smooth_terms)
        unexplained = float(np.square(values - predicted).sum())
        return _Fit(
            1 - unexplained / float(max(np.square(values - values.mean()).sum(), 1e-30)),
            1 - unexplained / float(max(np.square(values - smooth).sum(), 1e-30)),
        )

    def best_of(self, starts: Sequence[Affine]) -> Affine:
        """Refine the most promising first estimates, and return the best."""

        def agreement(transform: Affine) -> float:
            found = self.fit(transform).agreement
            return -math.inf if math.isnan(found) else found

        tried = sorted(starts, key=agreement, reverse=True)[:_TRIED_STARTS]
        refined = []
        for estimate in tried:
            for _ in range(_SEARCH_STEPS):
                step = self.step(estimate)
                if step is None:
                    break
                estimate = step @ estimate
            refined.append(estimate)
        return max(refined, key=agreement)

    def step(self, transform: Affine) -> Affine | None:
        """Gauss–Newton step as a rigid transform of world mm; None without enough overlap."""
        voxels, seen = self._visible(transform)
        if np.count_nonzero(seen) < max(_FEWEST_POINTS, 0.05 * len(seen)):
            return None
        voxels = voxels[seen]
        values = _sampled(self.moving, voxels)
        residual = self._predicted(self._terms_of(seen), values) - values
        slope = np.stack([_sampled(s, voxels) for s in self.slopes], 1) @ self.to_voxels[:3, :3]
        arm = _apply(transform, self.points_mm[seen])
        centre = arm.mean(0)
        change = np.concatenate([np.cross((arm - centre) / _RADIUS_MM, slope), slope], 1)
        spread = _ROBUST * float(np.median(np.abs(residual))) + 1e-30
        weighted = change / (1 + np.square(residual / spread))[:, None]
        move = np.linalg.lstsq(weighted.T @ change, weighted.T @ residual, rcond=None)[0]
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(move[:3] / _RADIUS_MM).as_matrix()
        step[:3, 3] = centre + move[3:] - step[:3, :3] @ centre
        return step


def _monomials(values: Sequence[Values], degree: int) -> list[Values]:
    """All products of one to `degree` of the variables."""
    return [
        np.asarray(np.prod(product, axis=0))
        for factors in range(1, degree + 1)
        for product in itertools.combinations_with_replacement(values, factors)
    ]
