"""History of a training: the logged losses and parameters."""

from __future__ import annotations

import csv
from pathlib import Path

LOGS = "logs"
"""Folder of the logs in the output folder."""


def history(out: Path, quantity: str) -> list[tuple[int, float]]:
    """Read the history of a logged quantity as (step, value).

    Parameters
    ----------
    out
        Folder of the training.
    quantity
        loss, val_loss, alpha, loss_label, …

    Notes
    -----
    Every call of `train` has its own log folder. If a call repeats steps of an earlier one, the later values
    count.
    """
    values: dict[int, float] = {}
    for log in sorted((out / LOGS).glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:])):
        with log.open(encoding="utf-8", newline="") as file:
            values |= {
                int(row["step"]): float(row[quantity]) for row in csv.DictReader(file) if row.get(quantity)
            }
    return sorted(values.items())
