"""Check of a dataset before a run: images, missing data and assumptions of every session.

Only names, sidecars and image headers are read, no voxel values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from chisep import methods
from chisep.errors import InputError
from chisep.io import bids, discovery
from chisep.io.filters import read_filters
from chisep.networks.inference import NetworkOptions
from chisep.pipeline.assumptions import assumptions
from chisep.pipeline.inputs import check_inputs
from chisep.pipeline.session import as_user_error
from chisep.pipeline.stages.field import ONE_ECHO_ONLY
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.relaxometry import FEWEST_ECHOES

_EVEN_STEPS = 1e-3
_FEW_ECHOES = 4
_SAME_PLACE_MM = 1e-2
_LONG_VOXEL = 3.0


@dataclass(frozen=True)
class BidsCheckConfig:
    """Dataset to check, and separation method."""

    bids: Positional[Path]
    """BIDS raw dataset with MEGRE images, and optional MESE images."""
    participant_label: tuple[str, ...] = ()
    """Participants, with or without `sub-`; if unset: all."""
    session_label: tuple[str, ...] = ()
    """Sessions, with or without `ses-`; if unset: all."""
    bids_filter_file: Path | None = None
    """JSON file with the images to use, as of `chisep run`."""
    method: str = methods.DEFAULTS["sources"]
    """Separation method of the run; `chisep methods` lists them."""
    b0_dir: tuple[float, float, float] | None = None
    """B0 direction in voxel axes of the gradient echo, as of `chisep run`."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        methods.find(self.method, "sources")


@dataclass(frozen=True)
class SessionCheck:
    """Check of one session.

    Parameters
    ----------
    name
        Name of the session, e.g. sub-01_ses-1, or of a participant without sessions.
    will_run
        Stages in their order, with their data; empty if problems stop the session.
    missing
        Missing data that would improve results.
    assumed
        Assumptions, where the data do not state a fact.
    warnings
        Stages that will run, but may give poor results.
    problems
        Problems that stop the session, each with its fix.
    """

    name: str
    will_run: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the session will run."""
        return not self.problems

    def lines(self) -> list[str]:
        """Lines of text: name and verdict, then one line per fact."""
        facts = {
            "will run": self.will_run,
            "missing": self.missing,
            "assumed": self.assumed,
            "warning": self.warnings,
            "problem": self.problems,
        }
        verdict = "will run" if self.ok else "will not run"
        return [
            f"{self.name}: {verdict}",
            *(f"  {title:<9} {text}" for title, texts in facts.items() for text in texts),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return {"ok": self.ok, **{key: list(v) if key != "name" else v for key, v in asdict(self).items()}}


def bids_check(config: BidsCheckConfig) -> list[SessionCheck]:
    """Check a dataset; see `check_dataset`."""
    selection = discovery.Selection(
        config.participant_label, config.session_label, read_filters(config.bids_filter_file)
    )
    return check_dataset(config.bids, selection, config.method, config.b0_dir)


def check_dataset(
    root: Path,
    selection: discovery.Selection | None = None,
    method: str = methods.DEFAULTS["sources"],
    b0_dir: tuple[float, float, float] | None = None,
) -> list[SessionCheck]:
    """Check every session of a dataset; an unusable session does not hide the others.

    What a run refuses before its first stage is refused here with the same words: both find sessions by
    `discover` and check images by `check_inputs`.

    Parameters
    ----------
    root
        Root of a BIDS raw dataset.
    selection
        Part of it to check; None: all.
    method
        Separation method of the run.
    b0_dir
        B0 in voxel axes of the gradient echo, if the run is given one.

    Returns
    -------
    list of SessionCheck
        Sorted by name; includes participants without a multi-echo gradient echo.

    Raises
    ------
    InputError
        If the folder, a participant or a session does not exist, or the method is unknown.
    """
    methods.find(method, "sources")
    checks = []
    for one in discovery.discover(root, selection):
        try:
            if one.session is None:
                raise one.error or ValueError("neither a session nor an error")
            checks.append(_checked(one.session, method, b0_dir))
        except Exception as error:  # as in a run: it stops this session only
            checks.append(SessionCheck(one.name, problems=(str(as_user_error(one.name, error)),)))
    return checks


def _checked(session: bids.Session, method: str, b0_dir: tuple[float, float, float] | None) -> SessionCheck:
    """Check one session with readable names and sidecars."""
    notes = _Notes(session, method, b0_dir)
    notes.images()
    notes.gradient_echo()
    notes.spin_echo()
    notes.separation()
    return SessionCheck(
        session.name,
        () if notes.problems else tuple(notes.will_run),
        *(tuple(texts) for texts in (notes.missing, notes.assumed, notes.warnings, notes.problems)),
    )


class _Notes:
    """Collects the checks of a session."""

    def __init__(self, session: bids.Session, method: str, b0_dir: tuple[float, float, float] | None) -> None:
        if session.megre.b0_t is None:
            raise ValueError("a gradient-echo series without field strength")
        self.session, self.method, self.b0_t = session, methods.METHODS[method], session.megre.b0_t
        self.will_run: list[str] = []
        self.missing: list[str] = []
        self.warnings: list[str] = []
        self.problems: list[str] = []
        self.inputs = check_inputs(session, b0_dir)
        self.fits_r2star = len(session.megre.te_s) >= FEWEST_ECHOES
        grid = self.inputs.megre
        known = b0_dir is not None or session.megre.b0_direction is not None
        self.assumed = [
            one.text
            for one in assumptions(
                session,
                session.megre.b0_t,
                FieldConfig(),
                b0_from_affine=None if known or grid is None else grid.b0_direction,
                dr_stated=False,
            )
        ]

    def images(self) -> None:
        """Note what a run finds in names, sidecars and headers before its first stage."""
        self.problems += map(str, self.inputs.errors)
        self.warnings += self.session.notes

    def gradient_echo(self) -> None:
        """Check the data of field and R2*."""
        megre = self.session.megre
        times = ", ".join(f"{1000 * te:.4g}" for te in megre.te_s)
        count = len(megre.te_s)
        echoes = f"{count} gradient echo{'' if count == 1 else 'es'}"
        self.will_run += [
            f"brain mask, field and its local part from {echoes} (TE {times} ms)",
        ]
        steps = [after - before for before, after in pairwise(megre.te_s)]
        if not self.fits_r2star:
            self.warnings.append(ONE_ECHO_ONLY)
            self.missing.append("a second gradient echo (MEGRE): R2* and sources")
        elif count == FEWEST_ECHOES:
            self.will_run.append("R2* from the ratio of two echoes")
        elif max(steps) - min(steps) > _EVEN_STEPS * max(steps):
            self.will_run.append("R2* by a non-linear fit: the echoes are not evenly spaced")
        else:
            self.will_run.append("R2* from evenly spaced echoes")
        if FEWEST_ECHOES <= count < _FEW_ECHOES:
            self.warnings.append(f"only {count} gradient echoes: R2* and R2' will be noisy")
        if not megre.phase_units:
            self.missing.append("Units in the sidecars of the phase")
        grid = self.inputs.megre
        if grid is None:
            return
        edges = grid.voxel_mm
        if max(edges) > _LONG_VOXEL * min(edges):
            size = " × ".join(f"{edge:.3g}" for edge in edges)
            self.warnings.append(f"voxels of {size} mm: susceptibility is underestimated with thick slices")
        self.warnings += self.inputs.notes

    def spin_echo(self) -> None:
        """Check the data of R2 and R2'."""
        mese = self.session.mese
        if not self.fits_r2star:
            if mese is not None:
                self.missing.append("R2*, without which the spin echo is not used")
            return
        if mese is None:
            self.missing.append("multi-echo spin echo (MESE): R2 is not measured")
            return
        times = ", ".join(f"{1000 * te:.4g}" for te in mese.te_s)
        self.will_run.append("registration of the spin echo to the gradient echo (rigid)")
        self.will_run.append(f"R2 from {len(mese.te_s)} spin echoes (TE {times} ms), R2' = R2* − R2")
        if len(mese.te_s) < _FEW_ECHOES:
            self.warnings.append(f"only {len(mese.te_s)} spin echoes: R2 will be noisy, and biased by B1")
        gre, spin_echo = self.inputs.megre, self.inputs.mese
        if gre is None or spin_echo is None:
            return
        same = gre.shape == spin_echo.shape
        if not (same and np.allclose(gre.matrix(), spin_echo.matrix(), atol=_SAME_PLACE_MM)):
            self.will_run.append("resampling of the spin echo, whose grid is another")
        if 0 < self.inputs.covered < 1:
            self.warnings.append(
                f"the spin echo covers {100 * self.inputs.covered:.0f} % of the gradient echo's volume; "
                "sources are not separated beyond it, and their QSM ends there (--qsm for another)"
            )

    def separation(self) -> None:
        """Check the separation method."""
        if not self.fits_r2star:
            self.will_run.append("QSM")
            return
        self.will_run.append(f"QSM, and χ_pos and χ_neg by {self.method.name}")
        if self.method.missing_weights:
            try:
                methods.weights_used(self.method.name, NetworkOptions(), chi_given=True)
            except InputError as error:
                self.problems.append(str(error))
        if self.session.mese is None and "r2prime" in self.method.needs:
            self.warnings.append(
                f"{self.method.name} reads R2', which depends on the pseudo-R2; methods that read R2* do not"
            )
