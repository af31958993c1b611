"""Quality checks of simulated sound sessions, from 1.5 to 7 T and SNR 15 to 150: none should be doubted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import chisep
from chisep.experiments.common.texts import markdown
from chisep.io.files import make_directory, write_json, write_text
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run
from chisep.progress import Progress
from chisep.provenance.records import records_of
from chisep.simulation.dataset import SimulateConfig, simulate

_SHORT_TE = {"te_gre_s": (0.004, 0.008, 0.012, 0.016)}
_LONG_TE = {"te_gre_s": (0.006, 0.014, 0.022, 0.030, 0.038), "tr_gre_s": 0.05}
_AT_7_T = {"b0_t": 7.0, **_SHORT_TE, "te_se_s": (0.010, 0.020, 0.030, 0.040, 0.050, 0.060)}
SESSIONS: Mapping[str, Mapping[str, Any]] = {
    **{f"3 T, SNR {snr:g}": {"snr": snr} for snr in (15.0, 30.0, 50.0, 150.0)},
    **{f"7 T, SNR {snr:g}": {"snr": snr, **_AT_7_T} for snr in (15.0, 30.0, 50.0, 150.0)},
    **{f"1.5 T, SNR {snr:g}": {"snr": snr, "b0_t": 1.5, **_LONG_TE} for snr in (15.0, 30.0, 50.0, 150.0)},
    "oblique by 20° and 10°": {"tilt_deg": (20.0, -10.0, 5.0)},
    "bipolar read-out": {"bipolar": True},
    "voxels of 2 × 2 × 4 mm": {"voxel_mm": (2.0, 2.0, 4.0)},
    "three echoes": {"te_gre_s": (0.007, 0.015, 0.023)},
    "eight echoes": {"te_gre_s": tuple(0.003 * number for number in range(1, 9))},
    "uneven echoes": {"te_gre_s": (0.0042, 0.0093, 0.0161, 0.0232, 0.0311), "tr_gre_s": 0.04},
    "motion before the spin echo": {"motion_mm": 2.0, "motion_deg": 2.0},
    "no spin echo": {"megre_only": True},
}
"""Sessions by name: options of the simulation other than the defaults."""


@dataclass(frozen=True, kw_only=True)
class ScanChecksConfig:
    """Sessions without faults, each processed from raw echoes, and the quality checks of their stages."""

    out: Positional[Path]
    """Folder for the results; sessions are simulated in it and removed."""
    voxel_mm: float = 3.0
    """Voxel edge of all sessions but the anisotropic one, in mm."""
    seed: int = 12
    """Seed of the first session; each has another."""


def scan_checks(config: ScanChecksConfig, progress: Progress | None = None) -> list[Path]:
    """Simulate and process every session, and collect its quality checks and warnings.

    Parameters
    ----------
    config
        Where results go, and the size of voxels.
    progress
        Called before every session.

    Returns
    -------
    list of Path
        scan-checks.md, scan-checks.json.

    Raises
    ------
    ChisepError
        If a session cannot be made, processed or written.
    """
    make_directory(config.out)
    rows: dict[str, Any] = {}
    for done, (name, options) in enumerate(SESSIONS.items()):
        if progress is not None:
            progress(f"session {name}", done, len(SESSIONS))
        rows[name] = _evaluated(config, config.seed + done, options)
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Head": "packaged MNI152 head",
        "VoxelMm": config.voxel_mm,
        "Seed": config.seed,
        "SessionsWithDoubt": sum(bool(row["Doubts"]) for row in rows.values()),
        "Sessions": rows,
    }
    return [
        write_text(config.out / "scan-checks.md", page(rows)),
        write_json(config.out / "scan-checks.json", found),
    ]


def _evaluated(config: ScanChecksConfig, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Process one session; return its checks, those that are not green, and all of its warnings."""
    folder = config.out / "session"
    shutil.rmtree(folder, ignore_errors=True)
    simulate(SimulateConfig(out=folder / "bids", seed=seed, **{"voxel_mm": config.voxel_mm, **options}))
    (result,) = run(RunConfig(folder / "bids", folder / "out", method="closed-form", qsm="tikhonov"))
    if result.error is not None:
        raise result.error
    records = records_of(folder / "out", result.name)
    shutil.rmtree(folder)
    checks = [check for record in records.values() for check in record.facts.get("Checks", ())]
    values = {check["Name"]: check["Value"] for check in checks}
    contrast = records["regions"].facts.get("IronContrastPpb")
    return {
        "Checks": values | ({} if contrast is None else {"IronContrastPpb": contrast}),
        "Doubts": [check["Name"] for check in checks if check["Level"] != "green"],
        "Warnings": list(result.warnings),
    }


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the results as Markdown.

    Parameters
    ----------
    rows
        Results by session.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row["Checks"]))
    lines = [
        [
            session,
            *(f"{row['Checks'][name]:.3g}" if name in row["Checks"] else "–" for name in names),
            ", ".join(row["Doubts"]) or "none",
        ]
        for session, row in rows.items()
    ]
    return (
        "# Quality checks of scans without faults\n\nOne digital phantom, scanned by the simulated scanner "
        f"under {len(rows)} conditions and processed by `chisep run`. The last column lists checks that are "
        "amber or red.\n\n" + markdown(["session", *names, "amber or red"], lines)
    )
