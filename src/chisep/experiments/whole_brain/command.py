"""Whole-brain experiment: every session from raw scans to maps, evaluated in all of the true brain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import chisep
from chisep.experiments.whole_brain.results import depth_figure, field_figure, page, summarised
from chisep.experiments.whole_brain.sessions import (
    BACKGROUND,
    CHAIN,
    SCAN,
    TRUE_MAPS,
    SimulatedSession,
    WholeBrainConfig,
)
from chisep.io.files import make_directory, write_bytes, write_json, write_text
from chisep.pipeline.config import RunConfig
from chisep.progress import Progress
from chisep.report import figures


def whole_brain(config: WholeBrainConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate and process every session, evaluate all maps in the true brain, and summarise.

    Results are written after every session, so that an interrupted run has those of its finished sessions.

    Parameters
    ----------
    config
        Heads, SNR, methods, folder of results.
    progress
        Receives the session and its step.

    Returns
    -------
    list of Path
        whole-brain.md, whole-brain.json, and figures of the errors against depth.

    Raises
    ------
    ChisepError
        If a session cannot be simulated, processed or written.
    """
    make_directory(config.out)
    sessions = [SimulatedSession(config, labels, snr) for snr in config.snrs for labels in config.labels]
    cells: list[dict[str, Any]] = []
    written: list[Path] = []
    for done, session in enumerate(sessions):
        for step, found in _cells(config, session):
            if progress is not None:
                progress(f"{session.name}: {step}", done, len(sessions))
            cells += found
        written = _written(config, cells)
    if progress is not None:
        progress("whole-brain", len(sessions), len(sessions))
    return written


def _cells(config: WholeBrainConfig, session: SimulatedSession) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a session step by step; each step yields its name, and the results that the step before made."""
    yield "simulation", []
    session.simulate()
    for method in config.methods:
        yield f"whole chain, {method}", []
        session.processed(method)
        yield f"evaluation, {method}", [session.cell(CHAIN, method)]
    yield "field and R2'", [session.cell(SCAN)]
    if session.snr == config.snrs[0]:
        yield "background removal", [session.cell(BACKGROUND)]
    for method in config.methods:
        yield f"maps without rim, {method}", [session.cell(TRUE_MAPS, method)]


def _written(config: WholeBrainConfig, cells: list[dict[str, Any]]) -> list[Path]:
    """Write the results of all finished sessions."""
    before = None
    if config.before is not None:
        before = dict(json.loads(config.before.read_text(encoding="utf-8")))
    options = asdict(config) | {"out": None, "before": None}
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Options": json.loads(json.dumps(options, default=_name)),
        "Weights": {
            method: RunConfig(config.out / "unused", config.out / "none", method=method).weights()
            for method in config.methods
        },
        **summarised(config, cells),
    }
    pictures = {
        "whole-brain": depth_figure(found, before),
        "whole-brain-field": field_figure(found),
    }
    return [
        write_text(config.out / "whole-brain.md", page(found, before)),
        write_json(config.out / "whole-brain.json", found),
        *(write_bytes(config.out / f"{name}.png", figures.png(figure)) for name, figure in pictures.items()),
    ]


def _name(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)
