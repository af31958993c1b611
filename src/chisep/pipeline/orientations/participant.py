"""Stages of one participant whose scans have fields: registration, COSMOS, sources, page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from chisep.errors import InputError
from chisep.io import bids
from chisep.io.files import Lock
from chisep.pipeline.engine import DryRunPlanner, Stage, StageCache
from chisep.pipeline.files import SessionFiles
from chisep.pipeline.orientations.config import OrientationsConfig, no_orientations
from chisep.pipeline.orientations.groups import Group
from chisep.pipeline.orientations.joint import (
    ITERATIVE,
    LABELS,
    TENSOR,
    Orientations,
    cosmos_stage,
    labels_stage,
    separation_stage,
    tensor_paths,
    tensor_stage,
)
from chisep.pipeline.orientations.report import page_of, report_stage
from chisep.pipeline.orientations.scans import MAPS, ScanFiles, align_stage, pose_stage
from chisep.pipeline.session import SessionResult
from chisep.progress import Progress
from chisep.provenance.records import Record
from chisep.solvers.tensor import FEWEST_ORIENTATIONS

log = logging.getLogger("chisep")

_FEWEST = 2


def write_descriptions(out: Path) -> None:
    """Describe the datasets in OUT/derivatives."""
    for folder, name in (
        (MAPS, "Fields and relaxation rates of several head orientations on one grid"),
        (LABELS, "χ by COSMOS and sources by non-negative least squares"),
        (ITERATIVE, "Sources by iterative χ-separation of several head orientations"),
        (TENSOR, "Apparent susceptibility tensor"),
    ):
        if not (out / folder / bids.DESCRIPTION).exists():
            bids.write_dataset_description(out / folder, name, derivative=True)


def process_participant(
    config: OrientationsConfig,
    group: Group,
    failed: Mapping[str, Exception],
    lock: Lock,
    progress: Progress | None = None,
) -> SessionResult:
    """Register the orientations of one participant and run the stages of all of them together.

    Parameters
    ----------
    config
        Options of the run.
    group
        Orientations; their own stages have run.
    failed
        Error of each scan whose own stages failed, by name.
    lock
        Lock on OUT; checked before every stage.
    progress
        Called at every stage.

    Raises
    ------
    ChisepError
        If fewer than two orientations can be used, or a stage fails.
    """
    run = _Participant(config, group, failed, lock, progress)
    return run.process()


def plan_participant(
    config: OrientationsConfig, group: Group, failed: Mapping[str, Exception], written: dict[Path, str]
) -> dict[str, str | None]:
    """Plan the stages of `process_participant`: `SCAN: STAGE` → reason to run, or None.

    Parameters
    ----------
    config, group, failed
        As of `process_participant`.
    written
        File → stage that would write it again, of the own stages of all scans.

    Raises
    ------
    ChisepError
        If fewer than two orientations can be used.
    """
    run = _Plan(config, group, failed, written)
    run.stages()
    return run.reasons


class _Participant:
    """Runs the stages of one participant."""

    def __init__(
        self,
        config: OrientationsConfig,
        group: Group,
        failed: Mapping[str, Exception],
        lock: Lock | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.group, self.failed = config, group, failed
        self.lock, self.progress = lock, progress
        self.done = 0
        self.warnings = [
            f"{name} is left out: {error}" for name, error in failed.items() if name != group.reference
        ]
        self.records: dict[str, dict[str, Record]] = {}
        self.skipped: list[str] = []

    def process(self) -> SessionResult:
        """Run all stages, the page last."""
        group, stages = self.stages()
        joint = self.records.pop(self.group.name)
        page = report_stage(group, stages, joint, self.records, self.warnings)
        self._do(self.group.name, page)
        return SessionResult(
            self.group.name, page_of(group), warnings=tuple(self.warnings), skipped=tuple(self.skipped)
        )

    def stages(self) -> tuple[Orientations, list[Stage]]:
        """Run all stages but the page."""
        reference, *others = self._scans()
        used = [reference, *(scan for scan in others if self._is_registered(scan, reference))]
        if len(used) < _FEWEST:
            raise no_orientations(
                self.config.bids / self.group.name,
                "only the reference can be used: " + "; ".join(self.warnings),
                "Correct these scans, or use `chisep run`.",
            )
        for scan in used:
            self._do(scan.name, align_stage(scan, reference))
        group = Orientations(self.config, self.group.subject, used)
        self._remove_left_over(group)
        stages = [cosmos_stage(group)]
        if (rates := group.with_r2prime) is not None:
            stages += [labels_stage(group, rates), separation_stage(group, rates)]
        else:
            self._warn("no spin echo (MESE): χ by COSMOS is made, and no sources, which need R2'")
        if (of_tensor := tensor_stage(group)) is not None:
            stages.append(of_tensor)
        for stage in stages:
            self._do(self.group.name, stage)
        return group, stages

    def _scans(self) -> list[ScanFiles]:
        """Find the scans whose own stages are done, the reference first."""
        if self.group.reference in self.failed:
            raise InputError(
                self.group.reference,
                found=f"the reference, which failed: {self.failed[self.group.reference]}",
                expected="a reference that can be processed",
                fix="Correct it, or choose another one with --reference.",
            )
        config, group = self.config, self.group
        sessions = [session for session in group.sessions if session.name not in self.failed]
        label = group.label(sessions[0])
        return [
            ScanFiles(
                SessionFiles(session, config.bids, config.out, config.device),
                config.out,
                group.label(session),
                label,
            )
            for session in sessions
        ]

    def _remove_left_over(self, group: Orientations) -> None:
        """Remove what an earlier run made and this one does not: networks would train on it."""
        names = tuple(f"{scan.name}_" for scan in group.scans)
        maps = (self.config.out / MAPS / self.group.name).rglob("*_*")
        left_over = [path for path in maps if path.is_file() and not path.name.startswith(names)]
        if group.with_r2prime is None:
            left_over += [*group.sources(LABELS)[:2], *group.sources(ITERATIVE)]
        if len(group.scans) < FEWEST_ORIENTATIONS:
            left_over += tensor_paths(group)
        for path in left_over:
            for file in (path, bids.sidecar_of(path)):
                file.unlink(missing_ok=True)

    def _is_registered(self, scan: ScanFiles, reference: ScanFiles) -> bool:
        facts = self._do(scan.name, pose_stage(self.config, scan, reference)).facts
        return bool(facts.get("Registered", True))  # only a plan has no such fact

    def _do(self, name: str, stage: Stage) -> Record:
        if self.lock is not None:
            self.lock.check()
        if self.progress is not None:
            self.progress(f"{self.group.name}: {stage.name} of {name}", self.done, self.done + 1)
        self.done += 1
        cache = StageCache(self.config.bids, self.config.out, name)
        cache.do(stage)
        self.skipped += [f"{name}: {one}" for one in cache.skipped]
        record = cache.records[stage.name]
        self.records.setdefault(name, {})[stage.name] = record
        self.warnings += record.warnings
        return record

    def _warn(self, text: str) -> None:
        log.warning("%s: %s", self.group.name, text)
        self.warnings.append(text)


class _Plan(_Participant):
    """Notes the stages of one participant and runs none."""

    def __init__(
        self,
        config: OrientationsConfig,
        group: Group,
        failed: Mapping[str, Exception],
        written: dict[Path, str],
    ) -> None:
        super().__init__(config, group, failed)
        self.reasons: dict[str, str | None] = {}
        self._written = written

    def _remove_left_over(self, group: Orientations) -> None:
        """Keep all files."""

    def _do(self, name: str, stage: Stage) -> Record:
        planner = DryRunPlanner(self.config.bids, self.config.out, name, self._written)
        planner.do(stage)
        self.reasons[f"{name}: {stage.name}"] = planner.reasons[stage.name]
        return planner.records[stage.name]

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
