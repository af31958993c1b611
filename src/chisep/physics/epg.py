"""Multi-echo spin echo with imperfect refocusing: extended phase graph of a CPMG train.

Transverse and longitudinal magnetisation are followed by the number of gradient dephasing cycles
(configuration states: Hennig 1988, 10.1016/0022-2364(88)90128-X; Weigel 2015, 10.1002/jmri.24619).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from chisep.errors import InputError

Values = Float[Tensor, "..."]
"""One value per voxel or dictionary entry."""
EchoTrains = Float[Tensor, "echo ..."]
"""One train of echoes for each of them."""
Positions = Float[Tensor, "position"]
"""One value per position across the slice."""

# The states of this many voxels fit into the cache of a core; larger chunks are slower and take more memory.
_CHUNK = 1 << 15
_SPACING_TOLERANCE = 0.01
_PULSE_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class SliceProfile:
    """How the flip angles fall off across the slice.

    Parameters
    ----------
    excitation, refocusing
        Flip angle at each position relative to the nominal one.
    weight
        Share of the spins at each position; a sum of 1 keeps the signal relative to M0.
    """

    excitation: Positions
    refocusing: Positions
    weight: Positions


def slice_profile(
    kind: Literal["sinc", "gaussian"] = "sinc",
    positions: int = 16,
    *,
    refocusing_width: float = 1.0,
    time_bandwidth: float = 4.0,
) -> SliceProfile:
    """Slice profile of a pulse in the small-tip approximation: the Fourier transform of its envelope.

    Parameters
    ----------
    kind
        Envelope: a sinc under a Hann window, or a Gaussian.
    positions
        Number of positions. They cover one slice thickness from the centre outwards; the profile is
        even, so the other half is the same.
    refocusing_width
        Thickness of the refocused over that of the excited slice.
    time_bandwidth
        Time-bandwidth product of the sinc; larger is steeper.

    Returns
    -------
    SliceProfile
        In double precision; weights are equal and sum to 1.

    Raises
    ------
    InputError
        If there is no position, or a width or the time-bandwidth product is not positive.

    Notes
    -----
    Small-tip theory is exact for small flip angles only: the slice that a real 180° pulse refocuses is
    somewhat narrower and has other side lobes. A measured or designed profile goes into `SliceProfile`.
    """
    if positions < 1 or not (refocusing_width > 0 and time_bandwidth > 0):
        raise InputError(
            "slice profile",
            found=f"{positions} positions, refocusing width {refocusing_width}, "
            f"time-bandwidth product {time_bandwidth}",
            expected="at least one position and numbers above 0",
            fix="Correct the option.",
        )
    distance = (torch.arange(positions, dtype=torch.float64) + 0.5) / positions
    excitation, refocusing = (
        _sinc_profile(z, time_bandwidth) if kind == "sinc" else torch.exp(-4 * math.log(2) * z**2)
        for z in (distance, distance / refocusing_width)
    )
    return SliceProfile(excitation, refocusing, torch.full_like(distance, 1 / positions))


def _sinc_profile(distance: Tensor, time_bandwidth: float) -> Tensor:
    """Fourier transform of a Hann-windowed sinc; distance from the centre in slice thicknesses."""
    time = (torch.arange(_PULSE_SAMPLES, dtype=torch.float64) + 0.5) / _PULSE_SAMPLES - 0.5
    envelope = torch.cos(torch.pi * time) ** 2 * torch.sinc(time_bandwidth * time)
    response = torch.cos(2 * torch.pi * time_bandwidth * distance[:, None] * time) @ envelope
    return response / envelope.sum()


def mese_signal(
    r2_hz: Values,
    r1_hz: Values,
    b1: Values,
    te_s: Sequence[float],
    *,
    excitation_deg: float = 90.0,
    refocusing_deg: float = 180.0,
    profile: SliceProfile | None = None,
) -> EchoTrains:
    """Echo amplitudes of a multi-echo spin echo (CPMG) with its stimulated echoes.

    Parameters
    ----------
    r2_hz, r1_hz
        Relaxation rates in 1/s; any shapes that broadcast with each other and with `b1`.
    b1
        Transmit field relative to nominal: scales every flip angle.
    te_s
        Echo times in seconds, evenly spaced from 0: TE, 2 TE, 3 TE, …
    excitation_deg, refocusing_deg
        Nominal flip angles in degrees.
    profile
        Flip angles across the slice; None means the nominal ones everywhere.

    Returns
    -------
    Tensor
        Signal relative to M0, shape (echo, ...). Real: echoes of a CPMG train lie along one axis; an
        amplitude is negative where flip angles far above nominal turn it over.

    Raises
    ------
    InputError
        If the echo times are not evenly spaced from 0.

    Notes
    -----
    Equal gradients on both sides of a refocusing pulse wind the magnetisation by one unit per half
    spacing, so an echo is made only by states that are wound an odd number of times at the pulses.
    Longitudinal magnetisation that regrows, or that the excitation left, is even there and never seen:
    R1 only shortens stimulated echoes. States wound too far to return before the last echo are not kept.
    """
    spacing_s = _even_spacing(te_s)
    shape = (r2_hz + r1_hz + b1).shape
    voxels = torch.stack([values.expand(shape).flatten() for values in (r2_hz, r1_hz, b1)])
    if profile is None:
        flips: list[tuple[float, float, float]] = [(1.0, 1.0, 1.0)]
    else:
        columns = torch.stack((profile.excitation, profile.refocusing, profile.weight), dim=1)
        flips = [(float(e), float(r), float(w)) for e, r, w in columns.tolist()]
    signal = voxels.new_zeros((len(te_s), voxels.shape[1]))
    for first in range(0, voxels.shape[1], _CHUNK):
        chunk = slice(first, first + _CHUNK)
        out, (r2, r1, scale) = signal[:, chunk], voxels[:, chunk]
        decay_2, decay_1 = torch.exp(-spacing_s * r2), torch.exp(-spacing_s * r1)
        for excitation, refocusing, weight in flips:
            start = torch.sin(math.radians(excitation_deg) * excitation * scale).mul_(weight)
            _add_train(out, start, math.radians(refocusing_deg) * refocusing * scale, decay_2, decay_1)
    return signal.reshape(len(te_s), *shape)


def _add_train(out: Tensor, start: Tensor, flip_rad: Tensor, decay_2: Tensor, decay_1: Tensor) -> None:
    """Add the echoes of one flip angle per voxel to `out`, shape (echo, voxel); all else (voxel).

    Row m of the states is wound 2m + 1 times just before a pulse: `ahead` is the transverse state that
    keeps dephasing, `back` the one that rephases, `stored` the longitudinal one. With pulses about the
    axis along which the excitation left the magnetisation (CPMG), all three stay real.
    """
    echoes = len(out)
    sine, half_sine, cosine = torch.sin(flip_rad), torch.sin(flip_rad) / 2, torch.cos(flip_rad)
    swap = (1 - cosine) / 2
    rows = (echoes + 1) // 2
    ahead, back, stored = start.new_zeros((3, rows, len(start)))
    half_decay = torch.sqrt(decay_2)
    ahead[0] = start * half_decay
    for echo in range(echoes):
        difference = ahead - back
        turned = swap * difference + sine * stored
        stored = stored.mul_(cosine).add_(half_sine * difference).mul_(decay_1)
        ahead, back = ahead.sub_(turned), back.add_(turned)
        out[echo] += back[0] * half_decay
        # The state unwound at the echo starts to wind the other way; all others move by one row.
        new_ahead = torch.cat((back[:1], ahead[:-1]))
        new_back = torch.cat((back[1:], torch.zeros_like(back[:1])))
        ahead, back = new_ahead.mul_(decay_2), new_back.mul_(decay_2)


def _even_spacing(te_s: Sequence[float]) -> float:
    """Spacing of echo times that are its multiples 1, 2, 3 and so on.

    Raises
    ------
    InputError
        If they are not.
    """
    spacing = te_s[-1] / len(te_s) if te_s else 0.0
    wrong = any(abs(te - (n + 1) * spacing) > _SPACING_TOLERANCE * spacing for n, te in enumerate(te_s))
    if not spacing > 0 or wrong:
        raise InputError(
            "spin-echo times",
            found=f"{', '.join(f'{te:g}' for te in te_s) or 'none'} s",
            expected="evenly spaced ones whose first is the spacing, such as 0.015, 0.030, 0.045 s",
            fix="Fit scans of other timing with an exponential decay.",
        )
    return spacing
