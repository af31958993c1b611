"""Page of the results on head orientations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chisep.experiments.common.texts import markdown

_COLUMNS = {"chi": "χ", "chi_less_mean": "χ less its mean", "chi_pos": "χ_pos", "chi_neg": "χ_neg"}
_CHANGES = {"field": "field", "chi_pos": "χ_pos", "chi_neg": "χ_neg"}


def page(results: Mapping[str, Any]) -> str:
    """Write the results as Markdown."""
    options = results["Options"]
    text = [
        "# Head orientations from raw scans\n",
        f"{results['Head']}, {options['voxel_mm']:g} mm, SNR {options['snr']:g}, "
        f"{options['orientations']} head orientations, each moved, turned and on its own grid. Processed by "
        "`chisep orientations`; made by `chisep reproduce orientations`.\n",
        "## Motion\n",
        _motion_table(results["Motion"]),
        "## Local fields\n",
        "On the grid of the first orientation, against the true field of the sources of the brain, in the "
        "common mask. Slope: of a line of measured against true field. Filtered: both fields after the "
        "spherical mean value filter of V-SHARP, which removes what is harmonic.\n",
        markdown(
            ("scan", "true field, RMS", "error, RMS", "slope", "filtered: error, RMS", "slope", "noise, RMS"),
            [
                (
                    row["Orientation"],
                    f"{row['TrueRmsPpb']:.2f} ppb",
                    f"{row['ErrorRmsPpb']:.2f} ppb",
                    f"{row['Slope']:.3f}",
                    f"{row['FilteredErrorRmsPpb']:.2f} ppb",
                    f"{row['FilteredSlope']:.3f}",
                    f"{row['NoiseRmsPpb']:.2f} ppb",
                )
                for row in results["LocalField"]
            ],
        ),
        "## χ and its sources\n",
        "NRMSE (%) against the truth in the common mask "
        f"({100 * results['CommonPartOfBrain']:.0f} % of the true brain).\n",
        _error_table(results["NrmsePercent"]),
        "Labels over those with true motion: "
        + ", ".join(f"{key} {ratio:.3f}" for key, ratio in results["LabelsOverTrueMotion"].items())
        + ".\n",
    ]
    if "ErrorByDepth" in results:
        text += [
            "Error of χ from raw scans by depth in the common mask:\n",
            markdown(
                ("depth", "voxels", "error, RMS", "part of the square error"),
                [
                    (
                        f"{row['DepthMm']} mm",
                        f"{100 * row['PartOfVoxels']:.0f} %",
                        f"{row['RmsPpb']:.1f} ppb",
                        f"{100 * row['PartOfSquareError']:.0f} %",
                    )
                    for row in results["ErrorByDepth"]
                ],
            ),
        ]
    if "ErrorBudget" in results:
        text += [
            "## Error budget\n",
            "NRMSE (%) as above, with causes of errors switched off in turn. Masks, weights and CSF are "
            "those that were measured. A true field is interpolated as the simulated scanner interpolates "
            "the head (cubic splines), and then as `chisep orientations` does. Noise is white, of the "
            "measured σ.\n",
            _error_table(
                {"from raw scans": results["NrmsePercent"]["from raw scans"], **results["ErrorBudget"]}
            ),
        ]
    if "LeftOut" in results:
        text += [
            "## An orientation that is left out\n",
            "NRMSE (%) of the field that χ predicts in an orientation that the method did not see.\n",
            markdown(
                ("method", "mean", *results["LeftOut"][next(iter(results["LeftOut"]))]["left_out"]),
                [
                    (
                        method,
                        f"{found['nrmse_percent']:.1f}",
                        *(f"{error:.1f}" for error in found["left_out"].values()),
                    )
                    for method, found in results["LeftOut"].items()
                ],
            ),
        ]
    if "Interpolation" in results:
        text += _interpolation(results["Interpolation"])
    if "Adaptation" in results:
        text += _adaptation(results["Adaptation"])
    text += ["![χ and its sources](orientations.png)\n"]
    return "\n".join(text)


def _motion_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "scan",
        "rotation",
        "tilt to B0",
        "shift",
        "error of rotation",
        "of tilt",
        "of shift",
        "largest",
    )
    return markdown(
        header,
        [
            (
                row["Orientation"],
                f"{row['RotationDeg']:.1f}°",
                f"{row['TiltDeg']:.1f}°",
                f"{row['ShiftMm']:.1f} mm",
                f"{row['RotationErrorDeg']:.3f}°",
                f"{row['TiltErrorDeg']:.3f}°",
                f"{row['ShiftErrorMm']:.3f} mm",
                f"{row['LargestErrorMm']:.3f} mm",
            )
            for row in rows
        ],
    )


def _error_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    return markdown(
        ("", *_COLUMNS.values()),
        [(name, *(f"{errors[key]:.1f}" for key in _COLUMNS)) for name, errors in rows.items()],
    )


def _interpolation(results: Mapping[str, Any]) -> list[str]:
    first = next(iter(results["Gain"].values()))
    header = ("", *(f"{name}, {band}" for name in first for band in results["BandsOfNyquist"]))
    gains = [
        (method, *(f"{gain:.2f}" for name in of_maps for gain in of_maps[name]))
        for method, of_maps in results["Gain"].items()
    ]
    errors = [
        (method, *(f"{of_maps[name]:.1f} %" for name in of_maps))
        for method, of_maps in results["ErrorPercent"].items()
    ]
    return [
        "## Interpolation\n",
        f"The true maps were brought to a grid turned by {results['AngleDeg']:g}° by Fourier interpolation, "
        "and back by each method. Gain: part of the amplitude that is left, in bands of the spatial "
        "frequency (1: that of the voxels). `chisep orientations` takes splines of order 5 for fields.\n",
        markdown(header, gains),
        "NRMSE in the brain:\n",
        markdown(("", *next(iter(results["ErrorPercent"].values()))), errors),
    ]


def _adaptation(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["LeftOut"],
            f"{row['FieldBefore']:.1f}",
            f"{row['FieldAfter']:.1f}",
            *(f"{row[when][key]:.1f}" for when in ("Before", "After") for key in ("chi_pos", "chi_neg")),
        )
        for row in results["Orientations"]
    ]
    return [
        "## A network that is adapted to the participant\n",
        f"`{results['Method']}`, fine-tuned without labels on all orientations but one "
        f"({results['Steps']} steps): the loss is the robust error of the fields that χ predicts in these "
        "orientations, and of R2'. NRMSE (%) of the field of the orientation that was left out, predicted "
        "from each of the others, and of the sources against the truth.\n",
        markdown(
            (
                "left out",
                "field, before",
                "after",
                "χ_pos before",
                "χ_neg before",
                "χ_pos after",
                "χ_neg after",
            ),
            rows,
        ),
        "After minus before, mean over the orientations that were left out with its 95 % t-interval (they "
        "are of one head, so it says nothing about other heads): "
        + ", ".join(f"{_CHANGES[key]} {_interval(change)}" for key, change in results["Change"].items())
        + ".\n",
    ]


def _interval(change: Mapping[str, float | None]) -> str:
    if change["low"] is None:
        return f"{change['mean']:+.1f}"
    return f"{change['mean']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"
