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
"""What a method makes: χ_pos and χ_neg, or χ alone."""
Solve = Callable[[Maps, Any, Progress | None], Sources | Susceptibility]
"""The one signature: maps, a config (None for its defaults), progress."""


@dataclass(frozen=True)
class MethodsConfig:
    """Settings of the list of methods."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Method:
    """A way to make sources or susceptibility.

    Parameters
    ----------
    name
        As on the command line.
    target
        What it makes.
    needs, uses
        Maps it cannot do without, and maps it uses if they are there.
    source
        Where results come from: a closed form, an iteration, a trained network.
    summary
        What it does, in a line.
    reference
        The paper.
    load
        Returns the solver; called when it is first used, so that listing methods imports none.
    weights
        Shipped weights that a network needs by default: its own, then those that make inputs of it where
        they are not given.
    has_field_term
        Whether it fits the field itself, so that a χ map made of the same field tells it nothing new.
    uses_noise_maps
        Whether it can do with an R2' that is as uncertain as R2* minus one R2 of the whole brain, if it is
        told so.
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
        """Weights that it needs by default and that this installation lacks."""
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
    """Entry of a network; one that makes sources and does not fit the field uses a χ map if there is one."""
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
            "field and R2' weighed by their noise, total variation, no negative sources",
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
            "dipole inversion by a U-net",
            "Yoon 2018, 10.1016/j.neuroimage.2018.06.030",
            ("qsmnet",),
        ),
        _network(
            "chi-sepnet-r2p",
            "sources",
            ("field", "r2prime"),
            "a U-net from χ (QSMnet, if none is given), R2' and field",
            "Kim M. 2025, Human Brain Mapping",
            ("chi-sepnet-r2p", "qsmnet"),
        ),
        _network(
            "chi-sepnet-r2s",
            "sources",
            ("field", "r2star"),
            "the same where there is R2* only: a U-net makes R2' of it",
            "Kim M. 2025, Human Brain Mapping",
            ("chi-sepnet-r2p", "r2s", "qsmnet"),
        ),
        _network(
            "chi-sepnet-r2s-direct",
            "sources",
            ("field", "r2star"),
            "a U-net from χ (QSMnet, if none is given), R2* and field",
            "Kim M. 2025, Human Brain Mapping",
            ("chi-sepnet-r2s-direct", "qsmnet"),
        ),
        _network(
            "unrolled-thesis",
            "sources",
            ("field", "r2prime"),
            "ten physics steps and passes of one U-net in turn",
            "Kim K.W. 2023, Seoul National University",
            ("unrolled-thesis", "qsmnet"),
        ),
        _network(
            "unrolled-qsm",
            "chi",
            ("field",),
            "exact field steps weighed by noise and U-nets in turn; tells its error",
            "chisep, docs/networks.md",
            ("unrolled-qsm",),
        ),
        _network(
            "unrolled",
            "sources",
            ("field", "r2prime"),
            "exact data steps weighed by noise and U-nets in turn; tells its error",
            "chisep, docs/networks.md",
            ("unrolled",),
            has_field_term=True,
        ),
    )
}
DEFAULTS: Mapping[Target, str] = {"sources": "unrolled", "chi": "unrolled-qsm"}
"""What makes sources, or χ, where nothing else is said."""


def find(name: str, target: Target) -> Method:
    """Look a method up.

    Raises
    ------
    InputError
        If there is none of that name that makes the target; names those there are.
    """
    known = [method.name for method in METHODS.values() if method.target == target]
    if name in known:
        return METHODS[name]
    raise unknown_name("method", name, known, "chisep methods")


def settings(name: str) -> dict[str, Any]:
    """Return the default settings of a solver for a record, as {"Settings": …}; nothing for a network."""
    method = METHODS[name]
    return {} if method.is_network else {"Settings": asdict(method.load()[1]())}
