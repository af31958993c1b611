"""The registry of methods: what each one makes, which maps it reads, and how it is loaded.

A new solver or network is a file and an entry here; the command line, the demo and the parametrised tests
read this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from chisep.errors import unknown_name
from chisep.networks import inference
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.progress import Progress
from chisep.types import Maps, Sources, Susceptibility

Target = Literal["sources", "chi"]
"""Result of a method: χ_pos and χ_neg, or χ alone."""
Solve = Callable[[Maps, Any, Progress | None], Sources | Susceptibility]
"""The one signature: maps, a config (None for its defaults), progress."""


@dataclass(frozen=True)
class MethodsConfig:
    """Settings of the list of methods."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Method:
    """A method of χ-separation or of dipole inversion.

    Parameters
    ----------
    name
        As on the command line.
    target
        Sources, or χ.
    needs, uses
        Required maps, and maps that it uses if they are given.
    source
        Closed form, iteration, or trained network.
    summary
        One line for the table of methods.
    reference
        The paper.
    load
        Returns the solver; called when it is first used, so that listing methods imports none.
    weights
        Shipped weights that a network needs by default: its own, then those of networks that compute missing
        inputs.
    has_field_term
        Whether it has a data term for the field, so that a χ map from the same field adds no information.
    uses_noise_maps
        Whether it accepts a pseudo-R2' (R2* minus a constant R2) when a matching noise map is given.
    """

    name: str
    target: Target
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    source: str
    summary: str
    reference: str
    load: Callable[[], tuple[Callable[..., Any], Callable[[], Any]]]
    weights: tuple[str, ...] = ()
    has_field_term: bool = False
    uses_noise_maps: bool = False

    @property
    def is_network(self) -> bool:
        """Whether results come from trained weights."""
        return bool(self.weights)

    @property
    def missing_weights(self) -> tuple[str, ...]:
        """Weights that it needs by default and that are not shipped."""
        known = network_weights.shipped() if self.weights else {}
        return tuple(name for name in self.weights if name not in known)

    def row(self) -> dict[str, str]:
        """Texts of the table that `chisep methods` prints."""
        missing = self.missing_weights
        return {
            "name": self.name,
            "makes": "χ_pos, χ_neg" if self.target == "sources" else "χ",
            "inputs": ", ".join([*self.needs, *(f"[{name}]" for name in self.uses)]),
            "source": self.source + (f" (not shipped: {', '.join(missing)})" if missing else ""),
            "what it does": self.summary,
            "reference": self.reference,
        }


def _closed_form() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import closed_form

    return closed_form.solve, closed_form.ClosedFormConfig


def _iterative() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import iterative

    return iterative.solve, iterative.IterativeConfig


def _tikhonov() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import tikhonov

    return tikhonov.solve, tikhonov.TikhonovConfig


def _tkd() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import tkd

    return tkd.solve, tkd.TkdConfig


def _tv() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from chisep.solvers import tv

    return tv.solve, tv.TvConfig


def _network(
    name: str,
    target: Target,
    needs: tuple[str, ...],
    summary: str,
    reference: str,
    weights: tuple[str, ...],
    *,
    has_field_term: bool = False,
) -> Method:
    """Entry of a network; a separation without a field term uses a χ map if there is one."""
    solve = inference.separate if target == "sources" else inference.invert
    return Method(
        name,
        target,
        needs,
        ("qsm",) if target == "sources" and not has_field_term else (),
        "trained",
        summary,
        reference,
        lambda: (partial(solve, weights=weights[0]), NetworkOptions),
        weights,
        has_field_term,
        uses_noise_maps=has_field_term,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "closed-form",
            "sources",
            ("field", "r2prime"),
            ("qsm",),
            "closed-form",
            "two equations a voxel: R2' and a susceptibility map (Tikhonov, if none is given)",
            "Shin 2021, 10.1016/j.neuroimage.2021.118371",
            _closed_form,
        ),
        Method(
            "iterative",
            "sources",
            ("field", "r2prime"),
            ("qsm", "magnitude"),
            "iterative",
            "field and R2' weighted by their noise, total variation, non-negative sources",
            "Shin 2021, 10.1016/j.neuroimage.2021.118371",
            _iterative,
            has_field_term=True,
        ),
        Method(
            "tikhonov",
            "chi",
            ("field",),
            (),
            "closed-form",
            "dipole inversion with a quadratic penalty",
            "Bilgic 2014, 10.1002/jmri.24365",
            _tikhonov,
        ),
        Method(
            "tkd",
            "chi",
            ("field",),
            (),
            "closed-form",
            "dipole inversion with a truncated kernel",
            "Shmueli 2009, 10.1002/mrm.22135",
            _tkd,
        ),
        Method(
            "tv",
            "chi",
            ("field",),
            ("magnitude",),
            "iterative",
            "dipole inversion with total variation",
            "Milovic 2018, 10.1002/mrm.27073",
            _tv,
        ),
        _network(
            "qsmnet",
            "chi",
            ("field",),
            "dipole inversion by a U-net; architecture after QSMnet",
            "Yoon 2018, 10.1016/j.neuroimage.2018.06.030",
            ("qsmnet",),
        ),
        _network(
            "chi-sepnet-r2p",
            "sources",
            ("field", "r2prime"),
            "a U-net from χ (QSMnet, if none is given), R2' and field; architecture after χ-sepnet",
            "Kim M. 2025, 10.1002/hbm.70136",
            ("chi-sepnet-r2p", "qsmnet"),
        ),
        _network(
            "chi-sepnet-r2s",
            "sources",
            ("field", "r2star"),
            "the same from R2* only: a second U-net predicts R2'",
            "Kim M. 2025, 10.1002/hbm.70136",
            ("chi-sepnet-r2p", "r2s", "qsmnet"),
        ),
        _network(
            "chi-sepnet-r2s-direct",
            "sources",
            ("field", "r2star"),
            "a U-net from χ (QSMnet, if none is given), R2* and field; architecture after χ-sepnet",
            "Kim M. 2025, 10.1002/hbm.70136",
            ("chi-sepnet-r2s-direct", "qsmnet"),
        ),
        _network(
            "unrolled-thesis",
            "sources",
            ("field", "r2prime"),
            "ten cascades of a gradient step on the data and one shared U-net",
            "Kim K.W. 2023, Seoul National University",
            ("unrolled-thesis", "qsmnet"),
        ),
        _network(
            "unrolled-qsm",
            "chi",
            ("field",),
            "cascades of a noise-weighted step on the field and a U-net; predicts its uncertainty",
            "chisep, docs/networks.md",
            ("unrolled-qsm",),
        ),
        _network(
            "unrolled",
            "sources",
            ("field", "r2prime"),
            "cascades of a noise-weighted data-consistency step and a U-net; predicts its uncertainty",
            "chisep, docs/networks.md",
            ("unrolled",),
            has_field_term=True,
        ),
    )
}
DEFAULTS: Mapping[Target, str] = {"sources": "unrolled", "chi": "unrolled-qsm"}
"""Default method of χ-separation and of dipole inversion."""


def find(name: str, target: Target) -> Method:
    """Look up a method by name.

    Raises
    ------
    InputError
        If no method of that name has the target; the message lists the methods.
    """
    known = [method.name for method in METHODS.values() if method.target == target]
    if name in known:
        return METHODS[name]
    raise unknown_name("method", name, known, "chisep methods")


def settings(name: str) -> dict[str, Any]:
    """Return the default settings of a solver for a record, as {"Settings": …}; nothing for a network."""
    method = METHODS[name]
    return {} if method.is_network else {"Settings": asdict(method.load()[1]())}
