"""A method of a comparison: a solver, or a network with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chisep import methods
from chisep.io.files import checksum
from chisep.networks import weights as network_weights


@dataclass(frozen=True)
class ComparedMethod:
    """A method of a comparison.

    Parameters
    ----------
    title
        Name in tables.
    method
        Name in `chisep methods`.
    weights
        Weights file of a network, or the name of packaged weights; empty for a solver.
    qsm
        QSM method for its input χ map; none if empty.
    refined
        Whether a solver refines the estimates of networks that predict their uncertainty.
    """

    title: str
    method: str
    weights: str = ""
    qsm: str = ""
    refined: bool = True

    @property
    def target(self) -> methods.Target:
        """Output of the method: χ or sources."""
        return methods.METHODS[self.method].target

    def key(self) -> dict[str, Any]:
        """Everything that its results depend on."""
        file = checksum(network_weights.find_weights(self.weights)) if self.weights else None
        key = {"method": self.method, "qsm": self.qsm, "weights": file}
        return key if self.refined else {**key, "refined": False}
