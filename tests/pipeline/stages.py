"""Some stages of a session, for tests that need no report."""

from __future__ import annotations

from chisep.pipeline.config import RunConfig
from chisep.pipeline.engine import Stage, StageCache
from chisep.pipeline.run import discover, opened
from chisep.pipeline.session import SessionResult, process


class UpTo(StageCache):
    """Does the stages up to and including one, and ignores the rest.

    Parameters
    ----------
    config
        Of the run.
    session
        Name of the session.
    last
        Name of the last stage to do.
    """

    def __init__(self, config: RunConfig, session: str, last: str) -> None:
        super().__init__(config.bids, config.out, session)
        self.last = last

    def do(self, stage: Stage) -> None:
        """Run a stage, unless it comes after the last one, or its record is up to date."""
        if self.last not in self.records:
            super().do(stage)


def run_up_to(last: str, config: RunConfig) -> SessionResult:
    """Run the only session of a dataset up to a stage; errors are raised."""
    (found,) = discover(config)
    assert found.session is not None, found.error
    with opened(config):
        cache = UpTo(config, found.name, last)
        result = process(config, found.session, cache=cache)
    assert last in cache.records
    return result
