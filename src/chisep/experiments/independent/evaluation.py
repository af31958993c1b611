"""Evaluation of a method on a phantom of the independent bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chisep import metrics
from chisep.experiments.common.scores import finite
from chisep.experiments.independent.worlds import Phantom
from chisep.training.conformal import SIGMAS
from chisep.types import Sources, Susceptibility

_METRICS = ("nrmse_percent", "psnr_in_mask_db", "xsim", "hfen_percent")
_FEWEST_VOXELS = 50


def evaluated(made: Sources | Susceptibility, phantom: Phantom) -> dict[str, Any]:
    """Compare with the truth.

    Returns
    -------
    dict
        By source (chi_pos, chi_neg, chi): `scores`, `coverage` of the 90 % interval in %, `regions` (slope of
        regional means over the true ones, RMS error in ppb); `lesions` with assigned and predicted value and
        leak. χ and its truth have mean 0, since a field does not determine it; the coverage of χ of a method
        that makes sources is without this.
    """
    inside = phantom.mask
    truth = {
        "chi_pos": phantom.chi_pos_ppm,
        "chi_neg": phantom.chi_neg_ppm,
        "chi": phantom.chi_pos_ppm - phantom.chi_neg_ppm,
    }
    values, sigmas = _arrays(made)
    errors = {name: value - truth[name] for name, value in values.items()}
    truth["chi"], values["chi"] = (_centred(x["chi"], inside) for x in (truth, values))
    if isinstance(made, Susceptibility):
        errors["chi"] = values["chi"] - truth["chi"]
    return {
        "scores": {name: _scores(value, truth[name], inside) for name, value in values.items()},
        "coverage": {
            name: 100 * float((np.abs(errors[name]) <= SIGMAS * sigma)[inside].mean())
            for name, sigma in sigmas.items()
        },
        "regions": {
            name: _regions(value, truth[name], phantom.head.labels) for name, value in values.items()
        },
        "lesions": _lesions(values, truth, phantom),
    }


def _arrays(made: Sources | Susceptibility) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    names = ("chi",) if isinstance(made, Susceptibility) else ("chi_pos", "chi_neg", "chi")
    values = {name: getattr(made, f"{name}_ppm").numpy() for name in names}
    sigmas = {name: getattr(made, f"{name}_sigma_ppm") for name in names}
    return values, {name: sigma.numpy() for name, sigma in sigmas.items() if sigma is not None}


def _centred(chi: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(inside, chi - chi[inside].mean(dtype=np.float64), 0).astype(np.float32)


def _scores(made: NDArray[Any], real: NDArray[Any], inside: NDArray[np.bool_]) -> dict[str, float | None]:
    return {metric: finite(getattr(metrics, metric)(made, real, inside)) for metric in _METRICS}


def _regions(made: NDArray[Any], real: NDArray[Any], labels: NDArray[np.int16]) -> dict[str, float | None]:
    means = {
        number: (found.mean, metrics_of.mean)
        for number, found in metrics.roi_statistics(real, labels).items()
        if found.voxels >= _FEWEST_VOXELS
        for metrics_of in (metrics.roi_statistics(made, labels)[number],)
    }
    true, predicted = np.array(list(means.values())).T
    line = np.polyfit(true, predicted, 1)
    return {
        "count": len(true),
        "slope": finite(float(line[0])),
        "rms_ppb": finite(1000 * float(np.sqrt(np.mean((predicted - true) ** 2)))),
    }


def _lesions(
    values: Mapping[str, NDArray[Any]], truth: Mapping[str, NDArray[Any]], phantom: Phantom
) -> list[dict[str, Any]]:
    found = []
    for lesion in phantom.lesions:
        result: dict[str, Any] = {
            "source": lesion.source,
            "shape": lesion.shape,
            "voxels": int(lesion.inside.sum()),
            "assigned_ppb": lesion.assigned_ppb,
        }
        errors = {
            name: 1000 * float((value - truth[name])[lesion.inside].mean(dtype=np.float64))
            for name, value in values.items()
        }
        if lesion.source in values:
            other = "chi_neg" if lesion.source == "chi_pos" else "chi_pos"
            result["predicted_ppb"] = finite(lesion.assigned_ppb + errors[lesion.source])
            result["leak_ppb"] = finite(errors[other])
        else:
            sign = 1 if lesion.source == "chi_pos" else -1
            true = sign * 1000 * float(truth["chi"][lesion.inside].mean(dtype=np.float64))
            result["assigned_ppb"], result["predicted_ppb"] = true, finite(true + sign * errors["chi"])
        found.append(result)
    return found
