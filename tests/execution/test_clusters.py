"""What processes of a cluster start with."""

from __future__ import annotations

import os

import dask
import pytest

from chisep.execution.clusters import _job_options, connected
from chisep.execution.config import ClusterConfig

NAME = "THP_MEM_ALLOC_ENABLE"


@pytest.mark.parametrize("chosen", [None, "0"])
def test_local_workers_use_large_pages_unless_the_user_chose(chosen, monkeypatch):
    monkeypatch.setenv(
        NAME, chosen or ""
    )  # so that it is restored: Dask sets what it gives to workers here too
    if chosen is None:
        monkeypatch.delenv(NAME)
    with connected(ClusterConfig("local", workers=1), 2, "cpu") as (client, _threads):
        client.wait_for_workers(1, timeout=60)
        assert set(client.run(os.environ.get, NAME).values()) == {chosen or "1"}


class TestJobs:
    def test_large_pages_are_set_before_the_lines_of_the_user(self):
        first = _job_options(ClusterConfig("slurm"), {})["job_script_prologue"]
        assert [line.split("=")[0] for line in first] == [f"export {NAME}"]
        own = {"job_script_prologue": ["module load python"], "queue": "night", "cores": 2}
        options = _job_options(ClusterConfig("slurm"), own)
        assert options["job_script_prologue"] == [*first, "module load python"]
        assert (options["queue"], options["cores"]) == ("night", 2)

    def test_lines_of_a_configuration_of_dask_are_kept(self):
        with dask.config.set({"jobqueue.slurm.job-script-prologue": ["module load python"]}):
            assert "module load python" in _job_options(ClusterConfig("slurm"), {})["job_script_prologue"]
