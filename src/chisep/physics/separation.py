"""Forward operator Φ of χ-separation: from χ_pos and χ_neg to χ, R2' and field.

y = Φ x with x = [χ_pos; χ_neg] and y = [χ_QSM; R2'/D_r,pos; Δf], all in ppm:

    χ_QSM       = χ_pos − χ_neg
    R2'/D_r,pos = χ_pos + (D_r,neg/D_r,pos) χ_neg
    Δf          = D * (χ_pos − χ_neg)

(Eq. 2.4 of Kim K.W., Seoul National University, 2023, where D_r,neg = D_r,pos.) Where a mask is given,
nothing is measured outside it: rows are 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chisep.physics.dipole import Dipole
from chisep.physics.operators import Combination, LinearOperator, Stacked

_SMALLEST_VARIANCE = 1e-30


class Separation(LinearOperator):
    """Φ: (..., 2, i, j, k) → (..., 3, i, j, k), channels as in the module's equations.

    Parameters
    ----------
    dipole
        The dipole operator of the grid; closed forms need one without padding.
    ratio
        D_r,neg / D_r,pos: one number, or one a volume, of shape (..., 1, 1, 1).
    mask
        Where the rows are measured, shape (..., i, j, k); everywhere if None.
    """

    def __init__(self, dipole: Dipole, ratio: float | Tensor = 1.0, mask: Tensor | None = None) -> None:
        self.dipole, self.ratio, self.mask = dipole, ratio, mask
        difference = Combination((1.0, -1.0))
        self._rows = Stacked((difference, Combination((1.0, ratio)), dipole @ difference))

    def apply(self, x: Tensor) -> Tensor:
        """Measurements of the sources x."""
        return self._measured(self._rows.apply(x), stacked=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Back-projection of the measurements y."""
        return self._rows.adjoint(self._measured(y, stacked=True))

    def gram(self, x: Tensor) -> Tensor:
        """ΦᴴΦ x with one dipole pass for both channels."""
        chi = x[..., 0, :, :, :] - x[..., 1, :, :, :]
        total = x[..., 0, :, :, :] + self.ratio * x[..., 1, :, :, :]
        if self.mask is None:
            seen = chi + self.dipole.gram(chi)
        else:
            total = self._measured(total)
            seen = self._measured(chi) + self.dipole.adjoint(self._measured(self.dipole.apply(chi)))
        return torch.stack((seen + total, self.ratio * total - seen), dim=-4)

    def _measured(self, rows: Tensor, *, stacked: bool = False) -> Tensor:
        """Set what lies outside the mask to 0, in one row, (..., i, j, k), or all, (..., 3, i, j, k)."""
        if self.mask is None:
            return rows
        return rows * (self.mask.unsqueeze(-4) if stacked else self.mask)

    def gram_symbol(self, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> tuple[Tensor, Tensor, Tensor]:
        """Compute ΦᴴWΦ in closed form at every k-space point.

        Parameters
        ----------
        weights
            Weight of each row of y: χ_QSM, R2', field.

        Returns
        -------
        tuple of Tensor
            Entries (pos, pos), (pos, neg) and (neg, neg) of the symmetric 2×2 matrix, each of the
            shape of the dipole kernel.

        Raises
        ------
        ValueError
            If the dipole operator is padded or there is a mask, and so not diagonal in k-space.
        """
        if not self.dipole.is_diagonal or self.mask is not None:
            raise ValueError("closed forms need a dipole operator without padding, and no mask")
        w_chi, w_r2prime, w_field = weights
        seen = w_chi + w_field * self.dipole.kernel**2
        return (
            seen + w_r2prime,
            w_r2prime * self.ratio - seen,
            seen + w_r2prime * self.ratio**2,
        )

    def proximal(
        self, y: Tensor, z: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0), rho: float = 1.0
    ) -> Tensor:
        """Data-consistency step in closed form: argmin_x ½‖W^½(Φx − y)‖² + ½ρ‖x − z‖², in k-space.

        Parameters
        ----------
        y
            Measurements, shape (..., 3, i, j, k).
        z
            Prior estimate of x, shape (..., 2, i, j, k).
        weights
            Inverse noise variance of each row of y.
        rho
            Weight of the prior; with ρ = 0 and all weights positive, the least-squares solution.

        Returns
        -------
        Tensor
            Shape (..., 2, i, j, k).

        Raises
        ------
        ValueError
            As `gram_symbol`.
        """
        pp, pn, nn = self.gram_symbol(weights)
        column = torch.tensor(list(weights), dtype=y.dtype, device=y.device)[:, None, None, None]
        right = self.dipole.spectrum(self.adjoint(column * y) + rho * z)
        pos, neg = right.unbind(-4)
        pp, nn = pp + rho, nn + rho
        determinant = pp * nn - pn**2
        solved = torch.stack(
            ((nn * pos - pn * neg) / determinant, (pp * neg - pn * pos) / determinant), dim=-4
        )
        return self.dipole.volume(solved)

    def total(self, x: Tensor) -> Tensor:
        """R2'/D_r,pos = χ_pos + r χ_neg of sources of shape (..., 2, i, j, k)."""
        return x[..., 0, :, :, :] + self.ratio * x[..., 1, :, :, :]

    # Long because the docstring states the whole contract.
    def data_step(
        self,
        r2prime_ppm: Tensor,
        field_ppm: Tensor,
        z: Tensor,
        weight_r2prime: Tensor,
        weight_field: Tensor,
        inverse_variance: Tensor | None = None,
        prior: Tensor | None = None,
        widest: float = 1.0,
        only_wide: bool = False,
    ) -> Tensor:
        """Data-consistency step from z by Kalman updates, first with R2', then with the field; no iterations.

        R2' measures s = χ_pos + r χ_neg in every voxel. It changes both sources in proportion to their
        variance and leaves their errors correlated. The field then changes χ = χ_pos − χ_neg as `field_step`
        does, and each source in proportion to its share of the remaining variance of χ: where R2' is precise,
        s is unchanged; where one source is certain, the other takes the whole change.

        Parameters
        ----------
        r2prime_ppm
            R2'/D_r,pos, shape (..., i, j, k).
        field_ppm
            Local field, shape (..., i, j, k).
        z
            Prior estimate of x, shape (..., 2, i, j, k).
        weight_r2prime
            The prior's variance over that of the noise of R2'; one number, one a volume, of shape
            (..., 1, 1, 1), or one a voxel.
        weight_field, inverse_variance
            As of `field_step`.
        prior
            Prior variance of each source relative to that in the weights, shape (..., 2, i, j, k); 1 if None.
        widest
            Maximum prior variance ratio: the largest variance of χ in the field step over the geometric mean
            of the volume. The step of each voxel is interpolated between those of the mean and of the maximum
            variance, since one weight for all voxels does not follow a lesion. 1: one weight for all.
        only_wide
            Update high-uncertainty voxels only: a further step for lesions. Without effect with one weight
            for all.

        Returns
        -------
        Tensor
            Shape (..., 2, i, j, k); outside the mask that of z, except for what the dipole spreads there.

        Notes
        -----
        With r = 1 and a uniform prior it minimises, as far as `field_step` is exact,

            ½ w_r ‖s − R2'/D_r‖² + ½ w_f ‖D * χ − Δf‖² + ½ ‖x − z‖² / prior,

        where w_f refers to twice the prior variance of w_r.
        """
        pos, neg = z.unbind(-4)
        v_pos, v_neg = (torch.ones_like(z) if prior is None else prior).unbind(-4)
        # 1 / (variance of s + that of its noise).
        inverse = weight_r2prime / (weight_r2prime * (v_pos + self.ratio**2 * v_neg) + 1)
        step = inverse * self._measured(r2prime_ppm - self.total(z))
        pos, neg = torch.addcmul(pos, v_pos, step), torch.addcmul(neg, v_neg, self.ratio * step)
        # Remaining covariances of the sources with χ.
        asymmetry = inverse * (v_pos - self.ratio * v_neg)
        of_pos = torch.addcmul(v_pos, v_pos, asymmetry, value=-1)
        of_neg = torch.addcmul(v_neg, v_neg, self.ratio * asymmetry)
        chi, variance = pos - neg, (of_pos + of_neg).clamp_min(_SMALLEST_VARIANCE)
        fraction = None if widest == 1 else self._log_variance_fraction(variance, widest)
        both = fraction is not None and not only_wide
        field_weights = (widest * weight_field, weight_field) if both else (widest * weight_field,)
        change, *usual = self._field_changes(field_ppm, chi, field_weights, inverse_variance)
        if fraction is not None and usual:
            change = usual[0].lerp(change, fraction)
        change = change / variance
        pos, neg = torch.addcmul(pos, of_pos, change), torch.addcmul(neg, of_neg, change, value=-1)
        made = torch.stack((pos, neg), dim=-4)
        return z.lerp(made, fraction.unsqueeze(-4)) if fraction is not None and only_wide else made

    # Long because the docstring states the whole contract.
    def posterior_mean(
        self,
        rows: Tensor,
        z: Tensor,
        weights: Tensor,
        prior: Tensor | None,
        initial: Tensor,
        iterations: int,
    ) -> Tensor:
        """Data-consistency step by conjugate gradients: argmin_x ½‖W^½(Φx − y)‖² + ½‖P^−½(x − z)‖².

        Parameters
        ----------
        rows
            y: R2'/D_r,pos and field, shape (batch, 2, i, j, k), for sources χ_pos and χ_neg; or the field
            alone, shape (batch, 1, i, j, k), for χ.
        z
            Prior estimate of the sources, of the shape of `rows`.
        weights
            W: inverse variance of each row in each voxel in units of the prior's, of the shape of `rows`; 0
            where nothing was measured.
        prior
            P: prior variance of each source in each voxel, of the shape of `rows`; 1 if None.
        initial
            First estimate, of the shape of `rows`.
        iterations
            Number of iterations; gradients flow through all of them.

        Returns
        -------
        Tensor
            Of the shape of `rows`.

        Notes
        -----
        With x = z + P^½ u the system is (1 + P^½ΦᴴWΦP^½) u = P^½ΦᴴW (y − Φz), preconditioned with the inverse
        of its diagonal. The mean of D² over all directions is 4/45.
        """
        scale = torch.ones_like(z) if prior is None else prior.clamp_min(_SMALLEST_VARIANCE).sqrt()
        scale = scale * self._measured(torch.ones_like(z), stacked=True)
        *_, of_field = weights.unbind(1)
        diagonal = 1 + scale.square() * (4 / 45) * of_field.unsqueeze(1)
        if rows.shape[1] > 1:
            ratio = torch.ones_like(z)
            ratio[:, 1] = ratio[:, 1] * self.ratio
            diagonal = diagonal + (scale * ratio).square() * weights[:, :1]

        def system(u: Tensor) -> Tensor:
            return u + scale * self._transposed(weights * self._rows_of(scale * u))

        u = (initial - z) / scale.clamp_min(_SMALLEST_VARIANCE) * (scale > 0)
        right = scale * self._transposed(weights * (rows - self._rows_of(z)))
        residual = right - system(u)
        preconditioned = residual / diagonal
        direction, before = preconditioned, _inner(residual, preconditioned)
        for _ in range(iterations):
            image = system(direction)
            step = before / _inner(direction, image).clamp_min(_SMALLEST_VARIANCE)
            u, residual = u + step * direction, residual - step * image
            preconditioned = residual / diagonal
            now = _inner(residual, preconditioned)
            direction = preconditioned + now / before.clamp_min(_SMALLEST_VARIANCE) * direction
            before = now
        return z + scale * u

    def _rows_of(self, x: Tensor) -> Tensor:
        """Rows R2'/D_r,pos and field of two sources, or the field of χ."""
        if x.shape[1] == 1:
            return self.dipole.apply(x[:, 0]).unsqueeze(1)
        chi = x[:, 0] - x[:, 1]
        return torch.stack((self.total(x), self.dipole.apply(chi)), 1)

    def _transposed(self, rows: Tensor) -> Tensor:
        """Adjoint of `_rows_of`."""
        if rows.shape[1] == 1:
            return self.dipole.adjoint(rows[:, 0]).unsqueeze(1)
        chi = self.dipole.adjoint(rows[:, 1])
        return torch.stack((rows[:, 0] + chi, self.ratio * rows[:, 0] - chi), 1)

    def _log_variance_fraction(self, variance: Tensor, widest: float) -> Tensor:
        """Position of each voxel's log variance between the mean (0) and the maximum (1)."""
        log = variance.log()
        if self.mask is None:
            usual = log.mean((-3, -2, -1), keepdim=True)
        else:
            voxels = self.mask.sum((-3, -2, -1), keepdim=True).clamp_min(1)
            usual = (log * self.mask).sum((-3, -2, -1), keepdim=True) / voxels
        return ((log - usual) / math.log(widest)).clamp(0, 1)

    def field_step(
        self, field_ppm: Tensor, chi: Tensor | None, weight: Tensor, inverse_variance: Tensor | None = None
    ) -> Tensor:
        """Data-consistency step of the field: argmin ½ w ‖D * χ' − Δf‖² + ½ ‖χ' − χ‖² per k-space point.

        Parameters
        ----------
        field_ppm
            Local field, shape (..., i, j, k).
        chi
            Prior estimate of χ, shape (..., i, j, k); 0 if None.
        weight
            w, the prior's variance over the smallest noise variance of the field; one number, or one a
            volume, of shape (..., 1, 1, 1).
        inverse_variance
            Inverse-variance weight of the field relative to its maximum, 0 to 1, shape (..., i, j, k); 1 if
            None.

        Returns
        -------
        Tensor
            Shape (..., i, j, k).

        Notes
        -----
        This is exact without padding, mask and inverse-variance weights. With them, unknown field
        is replaced by that of χ, in proportion to its missing weight (one step of expectation maximisation),
        and the change of χ in the padding is cropped.
        """
        (change,) = self._field_changes(field_ppm, chi, (weight,), inverse_variance)
        return change if chi is None else chi + change

    def _field_changes(
        self,
        field_ppm: Tensor,
        chi: Tensor | None,
        weights: Sequence[Tensor],
        inverse_variance: Tensor | None,
    ) -> list[Tensor]:
        """Compute the changes of χ from the misfit of the field, one for each weight."""
        kernel = self.dipole.kernel
        residual = self._measured(field_ppm if chi is None else field_ppm - self.dipole.apply(chi))
        spectrum = self.dipole.spectrum(residual if inverse_variance is None else residual * inverse_variance)
        return [
            self.dipole.volume(spectrum * (weight * kernel / (weight * kernel**2 + 1))) for weight in weights
        ]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each volume of a batch."""
    return (a * b).sum((1, 2, 3, 4), keepdim=True)
