"""Panels of the session report: the figures of every stage, and what to look for in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chisep.pipeline.outputs import BEYOND_RELIABLE_MASK
from chisep.regions.cit168 import nucleus_names
from chisep.regions.statistics import RegionValue
from chisep.report import figures
from chisep.report.session_images import Head, SessionImages
from chisep.report.subject import Panel, RegionRow

_PPB = 1000.0
_BRIGHT = 1.3


def panels(
    images: SessionImages, convergence: Mapping[str, Any], region_names: Mapping[int, str]
) -> list[Panel]:
    """Figures of every stage, the separated sources first, or the QSM where nothing was separated.

    Parameters
    ----------
    images
        Results of the stages.
    convergence
        Name of an iterative method → its convergence as `Convergence` has it.
    region_names
        Label → name.
    """
    sources = list(_source_panels(images))
    return [
        *(sources or [_qsm_panel(images)]),
        _mask_panel(images.head),
        *_phase_panels(images),
        _field_panel(images),
        *_spin_echo_panels(images),
        *_rate_panels(images),
        *([_qsm_panel(images)] if sources and not _is_shown(images) else []),
        *_region_panels(images, region_names),
        *(_convergence_panel(method, history) for method, history in convergence.items()),
    ]


def _source_panels(images: SessionImages) -> Iterator[Panel]:
    chi_pos_ppm, chi_neg_ppm, chi_ppm = images.chi_pos_ppm, images.chi_neg_ppm, images.chi_ppm
    if chi_pos_ppm is None or chi_neg_ppm is None or chi_ppm is None:
        return
    yield Panel.of_figure(
        "Separated sources",
        "Iron-rich nuclei are bright in χ_pos, white matter in χ_neg. Stripes along the magic angle or "
        "a bright rim at the edge of the mask are artefacts of the field, not tissue. "
        + BEYOND_RELIABLE_MASK,
        figures.source_maps(chi_pos_ppm, chi_neg_ppm, chi_ppm, images.affine, images.mask),
        alt="Maps of χ_pos, χ_neg and χ in sagittal, coronal and axial planes.",
        in_viewer=True,
    )
    if images.chi_sigmas_ppm:
        yield _uncertainty_panel(images)
    yield Panel.of_figure(
        "Distribution",
        "χ_pos and χ_neg are 0 at least; a large peak at 0 means that the method often hit that bound.",
        figures.histogram(
            {
                figures.CHI_POS: _PPB * chi_pos_ppm,
                figures.CHI_NEG: _PPB * chi_neg_ppm,
                figures.CHI: _PPB * chi_ppm,
            },
            images.reliable_mask,
            unit="ppb",
            window=figures.TOTAL_WINDOW_PPB,
        ),
        alt="Histograms of χ_pos, χ_neg and χ in the reliable mask.",
        technical=True,
    )


def _uncertainty_panel(images: SessionImages) -> Panel:
    names = (figures.CHI_POS, figures.CHI_NEG, figures.CHI)[: len(images.chi_sigmas_ppm)]
    return Panel.of_figure(
        "Predicted uncertainty of the sources",
        "Standard deviation of the error that the method predicts. It is large at the rim of the mask, in "
        "and around strong sources, and wherever R2′ is noisy. The value of a lesion has this uncertainty.",
        figures.planes(
            [
                figures.Row(f"SD of {name}", _PPB * sigma, "ppb", figures.SIGMA_WINDOW_PPB)
                for name, sigma in zip(names, images.chi_sigmas_ppm, strict=True)
            ],
            images.affine,
            mask=images.mask,
        ),
        alt=f"Maps of the standard deviation of {', '.join(names)} in three planes.",
        in_viewer=True,
    )


def _mask_panel(head: Head) -> Panel:
    return Panel.of_figure(
        "Brain mask",
        "The outline should follow the brain: no skull inside, no brain outside. If it does not, give a "
        "mask of your own (--masks).",
        figures.mask_outline(head.magnitude, head.mask, head.affine),
        alt="Outline of the brain mask on the magnitude in three planes.",
        in_viewer=True,
    )


def _phase_panels(images: SessionImages) -> Iterator[Panel]:
    yield Panel.of_figure(
        "Unwrapped phase",
        "Each echo should be smooth but for tissue, and steeper than the one before in proportion to its "
        "echo time. Sudden steps of 2π are unwrapping errors.",
        figures.echoes(
            images.unwrapped_rad,
            images.affine,
            images.te_s,
            title="Unwrapped phase",
            unit="rad",
            mask=images.mask,
        ),
        alt="Unwrapped phase of every echo in one axial plane.",
    )
    yield Panel.of_figure(
        "Phase quality",
        "The field is used inside the outline. Phase is poor above the sinuses and in veins: its quality is "
        "low, and echoes deviate from one line. Large deviations everywhere mean flow, motion, or odd and "
        "even echoes that differ (--field-map.bipolar).",
        figures.planes(
            [
                figures.Row("Phase quality", images.quality, "0 to 1", (0.0, 1.0)),
                *(
                    [figures.Row("Residual of the fit over echoes", images.residual_rad, "rad", (0.0, 0.5))]
                    if images.residual_rad is not None
                    else []
                ),
            ],
            images.affine,
            mask=images.mask,
            overlay=images.phase_mask,
        ),
        alt="Phase quality and residual of the fit, outlined by the phase-quality mask.",
    )


def _field_panel(images: SessionImages) -> Panel:
    return Panel.of_figure(
        "Total and local field",
        "The local field should show tissue only; slow shading near sinuses and ears is residual background "
        "field. The noise is that of the echoes; the error of the local field is the noise and what "
        "background removal leaves, which grows to the edge. The outline is that of the reliable mask.",
        figures.planes(
            [
                figures.Row("Total field", images.total_field_ppm, "ppm"),
                figures.Row("Local field", images.local_field_ppm, "ppm", (-0.05, 0.05)),
                figures.Row("Noise of the total field", _PPB * images.field_sigma_ppm, "ppb"),
                figures.Row("Error of the local field", _PPB * images.local_field_sigma_ppm, "ppb"),
            ],
            images.affine,
            mask=images.mask,
            overlay=images.reliable_mask,
        ),
        alt="Total field, local field and their standard deviations in three planes.",
        in_viewer=True,
    )


def _spin_echo_panels(images: SessionImages) -> Iterator[Panel]:
    """Registration of the spin echo, and the transmit field of its fit."""
    if images.spin_echo is None:
        return
    bright = images.mask & (images.spin_echo > _BRIGHT * np.median(images.spin_echo[images.mask]))
    yield Panel.of_figure(
        "Spin echo on gradient echo",
        "The outline is that of bright CSF in the spin echo. In the gradient echo it should follow the "
        "ventricles and sulci as well; if not, the registration failed.",
        figures.planes(
            [
                figures.Row("Gradient echo", images.magnitude, "a.u."),
                figures.Row("Spin echo", images.spin_echo, "a.u."),
            ],
            images.affine,
            mask=images.mask,
            overlay=bright,
        ),
        alt="Gradient echo and registered spin echo in three planes with the outline of CSF.",
        in_viewer=True,
    )
    if images.b1 is not None:
        yield Panel.of_figure(
            "Transmit field",
            "Fitted with R2 from stimulated echoes. It should be smooth, and without anatomy.",
            figures.three_planes(
                images.b1, images.affine, title="B1", unit="of nominal", window=(0.6, 1.4), mask=images.mask
            ),
            alt="Transmit field relative to nominal in three planes.",
        )


def _rate_panels(images: SessionImages) -> Iterator[Panel]:
    if images.r2star_hz is None:
        return
    rates = {
        "R2*": (images.r2star_hz, figures.RATE_WINDOW_HZ),
        "R2": (images.r2_hz, figures.RATE_WINDOW_HZ),
        "R2′": (images.r2prime_hz, figures.R2PRIME_WINDOW_HZ),
        "Noise of R2′": (images.r2prime_sigma_hz, figures.RATE_NOISE_WINDOW_HZ),
    }
    yield Panel.of_figure(
        "Relaxation rates",
        "R2′ is R2* minus R2; where noise makes it negative, it is black here. Bright R2′ above the sinuses "
        "is field inhomogeneity, not iron. Where the noise of R2′ is as large as R2′ itself, sources depend "
        "on the field alone.",
        figures.planes(
            [
                figures.Row(name, rate, "1/s", window)
                for name, (rate, window) in rates.items()
                if rate is not None
            ],
            images.affine,
            mask=images.mask,
        ),
        alt="Maps of R2*, R2 where there is a spin echo, R2′ and its noise in three planes.",
        in_viewer=True,
    )


def _is_shown(images: SessionImages) -> bool:
    """Whether the QSM is the χ of the separation that is shown with its sources."""
    return images.chi_ppm is not None and np.array_equal(images.qsm_ppm, images.chi_ppm)


def _qsm_panel(images: SessionImages) -> Panel:
    if images.qsm_of_sources:
        text = "χ of the separation above, less the mean of its reference region."
    elif images.chi_ppm is not None:
        text = "From the local field alone; compare with χ of the separation above."
    else:
        text = (
            "From the local field alone. Iron-rich nuclei are bright. Stripes along the magic angle or a "
            "bright rim at the edge of the mask are artefacts of the field, not tissue. "
            + BEYOND_RELIABLE_MASK
        )
    return Panel.of_figure(
        "Susceptibility map (QSM)",
        text,
        figures.three_planes(
            _PPB * images.qsm_ppm,
            images.affine,
            title="QSM",
            unit="ppb",
            window=figures.TOTAL_WINDOW_PPB,
            mask=images.mask,
        ),
        alt="Susceptibility map in three planes.",
        in_viewer=True,
    )


def _region_panels(images: SessionImages, names: Mapping[int, str]) -> Iterator[Panel]:
    if images.labels.any():
        yield Panel.of_figure(
            "Regions on the susceptibility map",
            "Each colour is a region, named below the planes. It should follow the structures of the map. If "
            "it does not, the region values are wrong: give a segmentation (--regions).",
            figures.region_planes(_PPB * images.qsm_ppm, images.labels, images.affine, images.mask, names),
            alt="Regions in colours over the susceptibility map in three planes.",
            in_viewer=True,
        )


def _convergence_panel(method: str, history: Mapping[str, Any]) -> Panel:
    end = "converged." if history["Converged"] else "stopped before the tolerance was reached."
    return Panel.of_figure(
        f"Convergence of {method}",
        f"{history['Iterations']} iterations, {end}",
        figures.convergence(history["Change"]),
        alt=f"Relative change of {method} at every iteration.",
        technical=True,
    )


def region_rows(values: Sequence[RegionValue]) -> list[RegionRow]:
    """Mean and standard deviation of the sources in every region, or of the QSM without separation.

    Iron-rich nuclei come first.

    Parameters
    ----------
    values
        Region table of a session; regions without values are left out.
    """
    by_region: dict[int, dict[str, RegionValue]] = {}
    for value in values:
        by_region.setdefault(value.index, {})[value.map] = value
    sources = ("chi_pos_ppb", "chi_neg_ppb", "chi_total_ppb")
    separated = any(value.map in sources for value in values)
    names = sources if separated else ("qsm_ppb",)
    rows = []
    nuclei = nucleus_names()  # what is read first
    for of in (by_region[index] for index in sorted(by_region, key=lambda index: index not in nuclei)):
        shown = [of[name] for name in names if name in of]
        pairs = [(one.mean, one.sd) for one in shown if one.mean is not None and one.sd is not None]
        if len(pairs) == len(names):
            pos, neg = pairs[:2] if separated else (None, None)
            rows.append(RegionRow(shown[0].name, shown[0].voxels, pos, neg, pairs[-1]))
    return rows
