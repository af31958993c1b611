"""What all stages of one session share: options, raw series, methods, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from chisep import methods
from chisep.io import bids
from chisep.io.echoes import EchoImage, files_of
from chisep.pipeline.assumptions import Assumption, assumptions
from chisep.pipeline.config import FROM_SOURCES, RunConfig
from chisep.pipeline.files import SessionFiles
from chisep.pipeline.segmentation import Segmentation, find_segmentation
from chisep.preprocessing.checks import Check, judge
from chisep.preprocessing.extent import require_slices
from chisep.preprocessing.relaxometry import FEWEST_ECHOES
from chisep.regions.atlas import AtlasRegistration
from chisep.types import Convergence


@dataclass(frozen=True, eq=False)
class SessionContext:
    """Options and inputs of one session.

    Parameters
    ----------
    config
        Options of the run.
    session
        Raw series to work on.
    b0_t
        Field strength in tesla.
    files
        Paths of the session.
    weights
        Weights of the dipole inversion (`qsm`) and of the separation.
    atlas
        Atlas that the user gave, if any.
    segmentation
        Segmentation of this subject, if there is one.
    registrations
        Registration of the whole brain with R2* (True) or without it (False), once a stage has made it.
    """

    config: RunConfig
    session: bids.Session
    b0_t: float
    files: SessionFiles
    weights: Mapping[str, list[dict[str, str]]]
    atlas: Path | None
    segmentation: Segmentation | None
    registrations: dict[bool, AtlasRegistration] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, session: bids.Session) -> SessionContext:
        """Gather what the stages of a session need.

        Raises
        ------
        InputError
            If a segmentation was asked for and there is none, or the scan has one or two slices.
        """
        if session.megre.b0_t is None:
            raise ValueError("a gradient-echo series without field strength")
        files = SessionFiles(session, config.bids, config.out, config.device, config.b0_dir)
        require_slices(files.header.shape[:3], str(session.megre.first))
        atlas = config.regions if config.regions is not None and config.regions.is_file() else None
        found = None if atlas else find_segmentation(session, config.bids, config.out, config.regions)
        return cls(config, session, session.megre.b0_t, files, config.weights(), atlas, found)

    @property
    def method(self) -> methods.Method:
        """Separation method."""
        return methods.METHODS[self.config.method]

    @property
    def reads_r2prime(self) -> bool:
        """Whether the separation reads R2', not R2*."""
        return "r2prime" in self.method.needs

    @property
    def fits_r2star(self) -> bool:
        """Whether there are echoes enough for R2*; without it there is no R2', and no separation."""
        return len(self.session.megre.te_s) >= FEWEST_ECHOES

    @property
    def qsm_from_sources(self) -> bool:
        """Whether the QSM is χ_pos − χ_neg of the separation."""
        return self.config.qsm == FROM_SOURCES and self.fits_r2star

    @property
    def qsm_method(self) -> str:
        """Method of the QSM: `separation`, or a dipole inversion."""
        return FROM_SOURCES if self.qsm_from_sources else self.config.inversion

    @property
    def is_referenced(self) -> bool:
        """Whether the mean of a region is subtracted from the QSM."""
        return self.config.reference != "none"

    @property
    def inverts_before_qsm(self) -> bool:
        """Whether a dipole inversion is a stage of its own, and its map not yet the QSM.

        So it is if a reference is subtracted from it, or if D_r is calibrated with it before the separation
        makes the QSM.
        """
        return self.config.calibrate_dr if self.qsm_from_sources else self.is_referenced

    @property
    def chi_key(self) -> str:
        """Output that holds χ without reference, for stages that come before the QSM."""
        if self.inverts_before_qsm:
            return "inversion"
        return "chi" if self.qsm_from_sources else "qsm"

    @property
    def magnitude(self) -> tuple[EchoImage, ...]:
        """Gradient-echo magnitudes."""
        return self.session.megre.magnitude

    @property
    def magnitude_files(self) -> list[Path]:
        """Files that the gradient-echo magnitudes are read from: what a stage declares that reads them."""
        return files_of(self.magnitude)

    @property
    def echo_parameters(self) -> dict[str, Any]:
        """Parameters of the gradient echo."""
        return {"EchoTime": list(self.session.megre.te_s), "MagneticFieldStrength": self.b0_t}

    @property
    def b0_parameters(self) -> dict[str, Any]:
        """Direction of B0."""
        return {"B0Direction": list(self.files.grid.b0_direction)}

    @cached_property
    def assumptions(self) -> list[Assumption]:
        """Assumptions on this session, with these options."""
        known = self.files.b0_direction is not None
        return assumptions(
            self.session,
            self.b0_t,
            self.config.field_map,
            b0_from_affine=None if known else self.files.grid.b0_direction,
            dr_stated=bool(self.config.dr) or self.config.calibrate_dr,
        )

    def assumption_facts(self, stage: str) -> dict[str, list[str]]:
        """Assumptions that the result of a stage depends on, for its record; nothing if there are none."""
        texts = [one.text for one in self.assumptions if stage in one.stages]
        return {"Assumptions": texts} if texts else {}

    def weight_parameters(self, stage: str) -> dict[str, Any]:
        """Weights, precision, refinement of `qsm` (inversion) or `separation`; nothing for a solver."""
        if not self.weights[stage]:
            return {}
        config = self.config
        inverts = stage == "qsm"
        method = config.inversion if inverts else config.method
        iterations = methods.refinement(method, config.inversion_network if inverts else config.network)
        refinement = {"Refinement": iterations} if iterations else {}
        return {"Weights": self.weights[stage], "Precision": config.network.precision} | refinement


def judged(context: SessionContext, checks: Sequence[Check], what: str) -> list[str]:
    """Warnings of the quality checks of a stage.

    Parameters
    ----------
    context
        Of the session; its options say whether poor results are accepted.
    checks
        Of the stage.
    what
        Result that was checked, for the message.

    Raises
    ------
    InputError
        If a check is red and poor results are not accepted.
    """
    return judge(
        checks,
        f"{what} of {context.session.name}",
        accept_poor=context.config.field_map.accept_poor,
        option="--field-map.accept-poor",
    )


def convergence_facts(convergence: Convergence) -> dict[str, Any]:
    """Convergence of an iterative solver and settings that a method chose, for the sidecar."""
    chosen = {"Chosen": dict(convergence.chosen)} if convergence.chosen else {}
    if not convergence.iterations:
        return chosen
    return chosen | {
        "Convergence": {
            "Iterations": convergence.iterations,
            "Converged": convergence.converged,
            "Change": list(convergence.change),
        }
    }
