"""Fit and test the law of the local field's error on simulated scans with their truth.

python tools/field_error.py fit METHOD OUT:BIDS [OUT:BIDS …]
python tools/field_error.py test METHOD OUT:BIDS [OUT:BIDS …]

OUT is the result of `chisep run BIDS OUT`, BIDS a dataset of `chisep simulate`. `fit` prints the constants
for `ERROR_LAWS` in src/chisep/preprocessing/field_error.py, by maximum likelihood with a penalty
on fifths of depth whose error/σ is not 1; `test` prints the error of
the local field by depth, and RMS error/σ in each fifth of depth.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from chisep.io import nifti
from chisep.preprocessing.background import BackgroundConfig, remove_background
from chisep.preprocessing.field_error import ERROR_LAWS, ErrorLaw, error_terms, missing_brain, robust_sd
from chisep.preprocessing.morphology import depth_mm

_BINS_MM = (0, 1, 2, 3, 4, 5, 7, 10, 15, 25, np.inf)
_SAMPLE = 60_000
_PENALTY = 20.0
"""Weight of the mean square of log(error/σ) over the fifths, per scan and kind of depth."""
_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Error in ppb and the terms of its law at the voxels of the true brain and the valid-field mask."""

    name: str
    error: _Values
    noise: _Values
    depth_mm: _Values
    true_depth_mm: _Values
    disagreement: _Values
    missing: _Values
    typical: float

    def sigma(self, law: ErrorLaw) -> _Values:
        """Apply the law, as `local_field_sigma` does."""
        parts = (self.noise, self.depth_mm, self.disagreement, self.missing)
        terms = (torch.from_numpy(part) for part in parts)
        return law.sigma(*terms, self.typical).numpy()


def sample_of(scan: str, method: str) -> Sample:
    """Remove the background of one scan, OUT:BIDS, and compare with its truth."""
    out, bids = map(Path, scan.split(":"))
    made, true = out / "sub-01/anat", bids / "derivatives/truth/sub-01/anat"
    image = nifti.load(made / "sub-01_desc-total_fieldmap.nii.gz")
    grid, total = nifti.grid_of(image), torch.from_numpy(image.data)
    noise = torch.from_numpy(nifti.load(made / "sub-01_stat-std_fieldmap.nii.gz").data)
    mask = torch.from_numpy(nifti.load(made / "sub-01_desc-eroded_mask.nii.gz").data > 0)
    local = remove_background(total, mask, grid, BackgroundConfig(method), sigma_ppm=noise)  # type: ignore[arg-type]
    field = local.local_field_ppm
    typical = robust_sd(field[local.mask])
    depth, disagreement = error_terms(method, field, local.mask, grid, total, known=mask)
    brain = torch.from_numpy(nifti.load(true / "sub-01_desc-brain_mask.nii.gz").data > 0)
    extracted = torch.from_numpy(nifti.load(made / "sub-01_desc-brain_mask.nii.gz").data > 0)
    here = brain & local.mask
    error = field - torch.from_numpy(nifti.load(true / "sub-01_desc-local_fieldmap.nii.gz").data)

    def values(volume: torch.Tensor, scale: float = 1.0) -> _Values:
        return scale * volume[here].double().numpy()

    return Sample(
        str(out),
        values(error - error[here].mean(), 1000),
        values(noise, 1000),
        values(depth),
        values(depth_mm(brain, grid)),
        values(disagreement, 1000),
        values(missing_brain(mask, extracted, grid, typical), 1000),
        1000 * typical,
    )


def rms(values: _Values) -> float:
    """Root of the mean square; NaN without values."""
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def fifths(ratio: _Values, depth: _Values) -> list[float]:
    """RMS error/σ in each fifth of depth."""
    fifth = np.searchsorted(np.quantile(depth, (0.2, 0.4, 0.6, 0.8)), depth)
    return [rms(ratio[fifth == number]) for number in range(5)]


def fitted(samples: list[Sample], start: ErrorLaw) -> ErrorLaw:
    """Fit the law to errors as normal variables and to the fifths, all scans with the same weight.

    The field of missing brain keeps its factor: scans at 3 T hardly have any.
    """

    def law_of(numbers: _Values) -> ErrorLaw:
        inner, rim, decay_mm, disagreement = (float(number) for number in numbers)
        return replace(start, inner=inner, rim=rim, decay_mm=decay_mm, disagreement=disagreement)

    def cost(numbers: _Values) -> float:
        if min(numbers) < 0 or numbers[2] <= 0:
            return float("inf")
        total = 0.0
        for sample in samples:
            sigma = sample.sigma(law_of(numbers))
            ratio = sample.error / sigma
            total += float(np.mean(np.log(sigma) + ratio**2 / 2))
            for depth in (sample.depth_mm, sample.true_depth_mm):
                total += _PENALTY * float(np.mean(np.log(fifths(ratio, depth)) ** 2))
        return total

    first = (start.inner, start.rim, start.decay_mm, start.disagreement)
    found = minimize(cost, first, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5})
    return law_of(np.round(found.x, 3))


def thinned(sample: Sample, rng: np.random.Generator) -> Sample:
    """Draw some of the voxels."""
    at = rng.choice(len(sample.error), min(_SAMPLE, len(sample.error)), replace=False)
    parts = (
        *(sample.error, sample.noise, sample.depth_mm, sample.true_depth_mm),
        *(sample.disagreement, sample.missing),
    )
    return Sample(sample.name, *(part[at] for part in parts), sample.typical)


def report(sample: Sample, law: ErrorLaw) -> None:
    """Print errors by depth, and error/σ in fifths of the depth."""
    ratio = sample.error / sample.sigma(law)

    strength = f"local field {sample.typical:.2f} ppb (robust SD)"
    print(f"{sample.name}: {strength}, error {rms(sample.error):.2f} ppb RMS")
    for low, high in pairwise(_BINS_MM):
        here = (sample.depth_mm > low) & (sample.depth_mm <= high)
        found = f"{rms(sample.error[here]):.2f} ppb, error/σ {rms(ratio[here]):.2f}"
        print(f"  depth {low:g} to {high:g} mm: {found}")
    for name, depth in (("mask", sample.depth_mm), ("true brain", sample.true_depth_mm)):
        ratios = " ".join(f"{one:.3f}" for one in fifths(ratio, depth))
        print(f"  error/σ in fifths of the depth in the {name}: {ratios}")
    print(f"  error/σ {rms(ratio):.3f}, within 1.645 σ {float(np.mean(np.abs(ratio) < 1.645)):.3f}")


def main() -> None:
    """Fit or test."""
    command, method, *scans = sys.argv[1:]
    samples = [sample_of(scan, method) for scan in scans]
    law = ERROR_LAWS[method]
    if command == "fit":
        rng = np.random.default_rng(0)
        law = fitted([thinned(sample, rng) for sample in samples], law)
        print(f'"{method}": {law}')
    for sample in samples:
        report(sample, law)


if __name__ == "__main__":
    main()
