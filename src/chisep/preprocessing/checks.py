"""Quality checks: a measured quantity against a limit for a warning and one for a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chisep.errors import InputError

Level = Literal["green", "amber", "red"]


def in_words(value: float, amber: float, red: float, unit: str) -> tuple[str, str, str]:
    """Value, range of good values and range of usable values, with their unit; see `Check`."""
    side = "below" if red > amber else "above"
    suffix = f" {unit}" if unit else ""
    return f"{value:.3g}{suffix}", f"{side} {amber:g}{suffix}", f"{side} {red:g}{suffix}"


@dataclass(frozen=True)
class Check:
    """A quantity of a scan and its limits.

    Parameters
    ----------
    name
        Key in sidecars, with the unit, e.g. CoherentResidualRad.
    label
        The quantity in words.
    value
        As measured.
    amber, red
        From these limits on, the result is doubtful or unusable. `red` below `amber`: small values are bad.
    cause
        Usual causes, and the fix.
    unit
        For people; empty for a fraction.
    """

    name: str
    label: str
    value: float
    amber: float
    red: float
    cause: str
    unit: str = ""

    @property
    def level(self) -> Level:
        """Green within both limits, amber beyond the first, red beyond the second or if not a number."""
        sign = 1 if self.red > self.amber else -1
        if not sign * self.value < sign * self.red:
            return "red"
        return "green" if sign * self.value < sign * self.amber else "amber"

    @property
    def comparison(self) -> str:
        """Value and limits in words."""
        value, good, usable = in_words(self.value, self.amber, self.red, self.unit)
        return f"{value} (good: {good}, usable: {usable})"

    def fact(self) -> dict[str, Any]:
        """Entry of a stage record."""
        return {
            "Name": self.name,
            "Label": self.label,
            "Value": float(f"{self.value:.4g}"),
            "Unit": self.unit,
            "Amber": self.amber,
            "Red": self.red,
            "Level": self.level,
        }


def judge(checks: Sequence[Check], subject: str, *, accept_poor: bool, option: str) -> list[str]:
    """Return a warning for every check that is not green.

    Parameters
    ----------
    checks
        Of one stage.
    subject
        What was checked, for the message.
    accept_poor
        Whether red checks are warnings too.
    option
        Option that sets `accept_poor`, for the message.

    Raises
    ------
    InputError
        If a check is red and poor results are not accepted.
    """
    red = [check for check in checks if check.level == "red"]
    if red and not accept_poor:
        raise InputError(
            subject,
            found="; ".join(f"{check.label}: {check.comparison}" for check in red),
            expected="a scan within the limits",
            fix=f"{red[0].cause} To continue all the same, add {option}.",
        )
    return [f"{check.label}: {check.comparison}. {check.cause}" for check in checks if check.level != "green"]
