"""The group level of a run: one table and page of all sessions of a dataset."""

from __future__ import annotations

from chisep.errors import InputError
from chisep.io import discovery
from chisep.io.files import locked
from chisep.pipeline.config import RunConfig
from chisep.progress import Progress
from chisep.report.group_sessions import session_names
from chisep.report.group_table import GroupResult, make_group


def run_group(config: RunConfig, progress: Progress | None = None) -> GroupResult:
    """Gather the sessions that a run asks for; see `make_group`.

    Parameters
    ----------
    config
        Where they are, and which; without labels and filters all that OUT has and BIDS has.
    progress
        Told which session is read.

    Raises
    ------
    InputError
        If BIDS, a participant or a session does not exist, no session was processed, or a participant level
        is at work on OUT.
    OutputError
        If OUT cannot be written.
    """
    selection = config.selection
    expected = [one.name for one in discovery.discover(config.bids, selection, names_only=True)]
    if not session_names(config.out):
        raise InputError(
            config.out,
            found="no session that was processed",
            expected="a derivatives dataset written by `chisep run BIDS OUT participant`",
            fix="Run the participant level first, or check the path.",
        )
    chosen = bool(selection.participants or selection.sessions or not selection.filters.is_empty)
    with locked(config.out):
        return make_group(
            config.out,
            progress,
            expected=expected,
            only_expected=chosen,
            participants=config.bids / "participants.tsv",
        )
