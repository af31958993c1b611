"""Groups of scans: the head orientations of each participant, their reference, and whose the spin echo is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from chisep.errors import InputError
from chisep.io import bids, discovery
from chisep.io.discovery import DiscoveredSession
from chisep.pipeline.orientations.config import ScansConfig, no_orientations

_ENTITIES = ("acq", "ses", "run")


@dataclass(frozen=True)
class Group:
    """Head orientations of one participant.

    Parameters
    ----------
    name
        Of the participant, e.g. sub-01.
    by
        Entity that tells them apart.
    scans
        Every orientation; one that cannot be read has an error.
    reference
        Name of the scan whose grid all maps get.
    error
        Why the participant cannot be used.
    """

    name: str
    by: str = ""
    scans: Sequence[DiscoveredSession] = ()
    reference: str = ""
    error: Exception | None = None

    @property
    def subject(self) -> str:
        """Label without `sub-`."""
        return self.name.removeprefix("sub-")

    @cached_property
    def sessions(self) -> list[bids.Session]:
        """Scans that can be read, the reference first."""
        sessions = [scan.session for scan in self.scans if scan.session is not None]
        return sorted(sessions, key=lambda session: session.name != self.reference)

    def label(self, session: bids.Session) -> str:
        """Label of an orientation, e.g. ori2."""
        return session.entities.get(self.by, "")


def find_groups(config: ScansConfig) -> list[Group]:
    """Find the head orientations of every participant.

    Parameters
    ----------
    config
        Dataset, selection, entity, reference.

    Returns
    -------
    list of Group
        Sorted by name; one that cannot be used has an error.

    Raises
    ------
    InputError
        If the dataset as a whole cannot be used.
    """
    by_subject: dict[str, list[DiscoveredSession]] = {}
    for scan in discovery.discover(config.bids, config.selection):
        by_subject.setdefault(scan.name.split("_")[0], []).append(scan)
    groups = []
    for name, scans in sorted(by_subject.items()):
        try:
            groups.append(_group(config, name, scans))
        except InputError as error:
            groups.append(Group(name, error=error))
    return groups


def _group(config: ScansConfig, name: str, scans: Sequence[DiscoveredSession]) -> Group:
    where = config.bids / name
    sessions = [scan.session for scan in scans if scan.session is not None]
    if not sessions:
        raise scans[0].error or ValueError("neither a session nor an error")
    by = config.by or _entity_of(sessions, where)
    rest = {tuple(sorted((k, v) for k, v in s.entities.items() if k != by)) for s in sessions}
    if len(sessions) < 2:
        (one,) = sessions
        raise no_orientations(where, f"one: {one.name}", "Use `chisep run`, or add the other scans.")
    if len(rest) > 1:
        names = ", ".join("_".join(f"{k}-{v}" for k, v in one) or "none" for one in sorted(rest))
        raise no_orientations(
            where,
            f"scans that differ in more than {by}-: {names}",
            "Choose one set of orientations with --session-label, --by or --bids-filter-file.",
        )
    reference = _reference(config, sessions, by, where)
    _require_one_field_strength(sessions)
    spin_echo = _with_spin_echo(sessions, by, reference)
    chosen = [_without_spin_echo(scan, spin_echo) for scan in scans]
    return Group(name, by, chosen, reference)


def _entity_of(sessions: Sequence[bids.Session], where: object) -> str:
    several = [name for name in _ENTITIES if len({s.entities.get(name, "") for s in sessions}) > 1]
    if len(several) > 1:
        raise no_orientations(
            where,
            f"scans that differ in {' and '.join(f'{name}-' for name in several)}",
            f"Say which one is the orientation: --by {several[0]}.",
        )
    return several[0] if several else _ENTITIES[0]


def _reference(config: ScansConfig, sessions: Sequence[bids.Session], by: str, where: object) -> str:
    """Name of the scan that was asked for, else of the one with a spin echo of its own, else of the first."""
    wanted = config.orientation_reference.removeprefix(f"{by}-")
    labels = {session.entities.get(by, ""): session.name for session in sessions}
    if wanted:
        if wanted not in labels:
            raise InputError(
                str(where),
                found=f"no orientation {wanted}",
                expected=f"one of: {', '.join(sorted(labels))}",
                fix="Check --reference.",
            )
        return labels[wanted]
    own = [session.name for session in sessions if _has_own_spin_echo(session, by)]
    return own[0] if own else sessions[0].name


def _has_own_spin_echo(session: bids.Session, by: str) -> bool:
    """Whether a scan has a spin echo with its own label."""
    if session.mese is None:
        return False
    label = bids.entities(session.mese.first.name).get(by, "")
    return label == session.entities.get(by, "")


def _with_spin_echo(sessions: Sequence[bids.Session], by: str, reference: str) -> str:
    """Name of the scan whose spin echo is used: a labelled one, else that of the reference."""
    own = [session.name for session in sessions if _has_own_spin_echo(session, by)]
    return reference if reference in own or not own else own[0]


def _without_spin_echo(scan: DiscoveredSession, owner: str) -> DiscoveredSession:
    """Scan without its spin echo unless it is the owner."""
    if scan.session is None or scan.name == owner:
        return scan
    return replace(scan, session=replace(scan.session, mese=None))


def _require_one_field_strength(sessions: Sequence[bids.Session]) -> None:
    first = sessions[0]
    for other in sessions[1:]:
        if other.megre.b0_t != first.megre.b0_t:
            raise InputError(
                str(bids.sidecar_of(other.megre.first)),
                found=f"MagneticFieldStrength {other.megre.b0_t}",
                expected=f"{first.megre.b0_t} as in {bids.sidecar_of(first.megre.first)}",
                fix="Orientations are of one scanner: correct the sidecar, or leave the scan out.",
            )
