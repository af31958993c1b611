"""Ablations of the unrolled network: small trainings of one budget, with one change each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tyro.conf import Positional

import chisep
from chisep.experiments.common.budgets import BudgetConfig, Run, budgeted, require_known, with_widths
from chisep.experiments.common.networks import Clock, trained_weights
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import finite
from chisep.experiments.common.texts import markdown, number
from chisep.io.files import checksum, make_directory, write_bytes, write_json, write_text
from chisep.io.weights import load_header
from chisep.networks import weights as network_weights
from chisep.networks.config import MEASURED_ROWS, SOURCES
from chisep.networks.unet import Norm
from chisep.networks.unrolled_proximal import UnrolledProximalConfig
from chisep.progress import Progress
from chisep.report import figures
from chisep.training.data import FoldersConfig, TrainingScan
from chisep.training.protocols import ProtocolConfig, ProtocolCrops
from chisep.training.recipes import Recipe, find
from chisep.training.train import ScansOfTraining, TrainConfig, read_scans

_TEST_SEED = 0xAB1A
_SECOND_SEED = 1
_KINDS = {"tissue": (0.0, 0.15), "lesions": (0.15, math.inf)}
"""Classes of voxels with separate errors, by χ_pos + χ_neg in ppm; a few strong lesions would dominate a
common error."""
_STANDARD = ProtocolConfig(standard_share=1.0, gre_only_share=0.0)
_PROTOCOLS = {
    "one protocol": _STANDARD,
    "any protocol": ProtocolConfig(standard_share=0.0, gre_only_share=0.0),
    "one protocol, SNR 25": replace(_STANDARD, snr=(25.0, 25.0)),
}
"""Protocols of the test crops, by the title in tables."""


@dataclass(frozen=True, kw_only=True)
class NetworkAblationsConfig(BudgetConfig):
    """Small trainings of one budget, with one change each, evaluated on crops of other heads."""

    out: Positional[Path]
    """Folder for trainings and results; existing ones of the same budget are reused."""
    data: FoldersConfig
    """Digital phantoms (`--labels truth`); results are of the subjects for validation."""
    batch_size: int = 4
    """Crops in a batch."""
    steps_per_epoch: int = 200
    """Batches in an epoch."""
    test_crops: int = 96
    """Number of test crops, other crops of the same phantoms."""

    def __post_init__(self) -> None:
        require_known(self, runs(self))


def runs(config: NetworkAblationsConfig) -> list[Run]:
    """All runs in the order of training, the most important first."""
    whole, baseline = (budgeted(find(name), config) for name in ("unrolled", "unrolled-baseline"))
    standard = replace(baseline, protocol=_STANDARD)
    twice = tuple(2 * width for width in config.widths)
    return [
        Run("unrolled", "full network, two cascades", whole),
        Run("baseline", "χ-sepnet-R2', one protocol", standard),
        Run("baseline-wide", "the same, twice as many channels", with_widths(standard, twice)),
        Run("one-protocol", "full network, trained on one protocol", replace(whole, protocol=_STANDARD)),
        Run("instance-norm", "instance norm instead of batch norm", _normed(whole, "instance")),
        Run("no-norm", "no norm", _normed(whole, "none")),
        Run("no-dc-steps", "no DC steps", _changed(whole, data_steps=False, last_steps=0)),
        Run("no-final-dc-step", "no DC step after the last U-net", _changed(whole, last_steps=0)),
        Run("fixed-prior", "one prior for all voxels", _changed(whole, adaptive=False)),
        Run("no-inverse", "without the inverted field as input", _changed(whole, inverse_steps=0)),
        Run("tied", "one U-net for all cascades", _changed(whole, tied=True)),
        Run("no-noise-maps", "without noise maps as input", _without_noise(whole)),
        Run(
            "one-loss", "loss on the last cascade only", replace(whole, loss=replace(whole.loss, passes=None))
        ),
        *(Run(f"cascades-{n}", f"{n} cascade{'s' * (n > 1)}", _changed(whole, passes=n)) for n in (1, 3, 4)),
        Run("wide", "full network, twice as many channels", with_widths(whole, twice)),
        Run("unrolled-seed-2", "full network, second seed", replace(whole, seed=_SECOND_SEED)),
        Run("baseline-seed-2", "χ-sepnet-R2', second seed", replace(standard, seed=_SECOND_SEED)),
    ]


def _normed(recipe: Recipe, norm: Norm) -> Recipe:
    network = recipe.network
    return replace(recipe, network=replace(network, unet=replace(network.unet, norm=norm)))


def _changed(recipe: Recipe, **changes: Any) -> Recipe:  # noqa: ANN401
    proximal = replace(recipe.network.proximal or UnrolledProximalConfig(), **changes)
    return replace(recipe, network=replace(recipe.network, proximal=proximal))


def _without_noise(recipe: Recipe) -> Recipe:
    return replace(recipe, network=replace(recipe.network, inputs=MEASURED_ROWS))


def ablations(config: NetworkAblationsConfig, progress: Progress | None = None) -> list[Path]:
    """Train and evaluate the missing runs, until all are done or the time is up.

    Parameters
    ----------
    config
        Budget, heads, folder of results.
    progress
        Receives the run that is being trained, or the head that is being read.

    Returns
    -------
    list of Path
        ablations.md and ablations.json, of the runs done so far.

    Raises
    ------
    InputError
        If a head cannot be read, or a folder holds a run of another budget.
    OutputError
        If a result cannot be written.

    Warns
    -----
    ChisepWarning
        If the time was up before all runs were done.
    """
    make_directory(config.out)
    clock, heads = Clock(config.minutes), _Heads(config, progress)
    chosen = [run for run in runs(config) if not config.only or run.name in config.only]
    for done, run in enumerate(chosen):
        if progress is not None:
            progress(f"training {run.name}", done, len(chosen))
        training = TrainConfig(
            out=config.out / "runs" / run.name,
            data=config.data,
            recipe=run.recipe,
            name=run.name,
            threads=config.threads,
        )
        weights = trained_weights(training, clock, progress, heads.read)
        if weights is None:
            clock.warn(f"{', '.join(r.name for r in chosen[done:])} not done")
            break
        key = {
            "Weights": checksum(weights),
            "Crops": config.test_crops,
            "Protocols": {name: asdict(protocol) for name, protocol in _PROTOCOLS.items()},
        }
        cached_result(_path(config, run), key, partial(_evaluated, config, run, weights, heads))
    if progress is not None:
        progress("ablations", len(chosen), len(chosen))
    return _write(config)


class _Heads:
    """Heads that all runs share, read on first use."""

    def __init__(self, config: NetworkAblationsConfig, progress: Progress | None) -> None:
        self._config, self._progress = config, progress
        self._known: ScansOfTraining | None = None

    def read(self) -> ScansOfTraining:
        """Heads for training and for validation."""
        if self._known is None:
            self._known = read_scans(self._config.data, find("unrolled"), self._progress)
        return self._known


def _path(config: NetworkAblationsConfig, run: Run) -> Path:
    return config.out / "runs" / run.name / "evaluated.json"


@torch.no_grad()
def _evaluated(config: NetworkAblationsConfig, run: Run, weights: Path, heads: _Heads) -> dict[str, Any]:
    """NRMSE of both sources over crops under each of the protocols."""
    trained = network_weights.load(weights)
    validation = heads.read()[1]
    header = load_header(weights)
    return {
        "run": run.name,
        "title": run.title,
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "validation_loss": header["metrics"]["validation_loss"],
        "nrmse_percent": {
            name: _nrmse(trained, _crops(validation, run, protocol, config))
            for name, protocol in _PROTOCOLS.items()
        },
    }


def _crops(
    heads: list[TrainingScan], run: Run, protocol: ProtocolConfig, config: NetworkAblationsConfig
) -> ProtocolCrops:
    return ProtocolCrops(heads, run.recipe.network, protocol, config.crop, config.test_crops, _TEST_SEED)


def _nrmse(
    trained: network_weights.LoadedNetwork, crops: ProtocolCrops
) -> dict[str, dict[str, float | None]]:
    """NRMSE of both sources in percent, separately in ordinary tissue and in strong lesions."""
    errors, sizes = (torch.zeros(len(_KINDS), 2, dtype=torch.float64) for _ in range(2))
    for index in range(len(crops)):
        example = crops[index]
        batch = example.as_batch()
        phi = batch.phi(batch.dipole(trained.config.padding(whole=False)))
        made = trained.network.intermediate_estimates(batch.inputs, batch.mask, phi)[-1][0, :2].clamp_min(0)
        strength = example.targets.sum(0)
        for kind, (low, high) in enumerate(_KINDS.values()):
            inside = example.mask[0] & (strength >= low) & (strength < high)
            errors[kind] += (made - example.targets)[:, inside].double().square().sum(1)
            sizes[kind] += example.targets[:, inside].double().square().sum(1)
    values = 100 * (errors / sizes).sqrt()
    return {
        kind: {source: finite(float(value)) for source, value in zip(SOURCES, row, strict=True)}
        for kind, row in zip(_KINDS, values, strict=True)
    }


def _write(config: NetworkAblationsConfig) -> list[Path]:
    rows = [
        json.loads(_path(config, run).read_text(encoding="utf-8"))
        for run in runs(config)
        if _path(config, run).is_file()
    ]
    for row in rows:
        row.pop("key", None)
    found = {
        "GeneratedBy": f"chisep {chisep.__version__}",
        "Budget": json.loads(json.dumps(config.budget)),
        "TestCrops": config.test_crops,
        "Heads": {"train": list(config.data.train), "validation": list(config.data.validation)},
        "Runs": {run.name: json.loads(json.dumps(asdict(run.recipe))) for run in runs(config)},
        "Rows": rows,
    }
    written = [
        write_text(config.out / "ablations.md", page(config, rows)),
        write_json(config.out / "ablations.json", found),
    ]
    if rows:
        written.append(write_bytes(config.out / "ablations.png", figures.png(_figure(rows))))
    return written


def page(config: NetworkAblationsConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the results as Markdown."""
    head = [f"{name}: {kind}" for name in _PROTOCOLS for kind in _KINDS]
    lines = [
        [
            row["title"],
            f"{row['parameters'] / 1e6:.2f}",
            *(
                "/".join(f"{number(row['nrmse_percent'][name][kind][source]):.1f}" for source in SOURCES)
                for name in _PROTOCOLS
                for kind in _KINDS
            ),
        ]
        for row in rows
    ]
    steps = config.epochs * config.steps_per_epoch
    return "\n".join(
        (
            "# Ablations of the unrolled network\n",
            f"Channels per level: {'-'.join(map(str, config.widths))}, {steps} steps of {config.batch_size} "
            f"crops of {config.crop}³. NRMSE (%) of χ_pos/χ_neg over {config.test_crops} crops of phantoms "
            "that were not trained on, in tissue and where χ_pos + χ_neg is 150 ppb or more. DC: data "
            "consistency.\n",
            markdown(["network", "parameters (10⁶)", *head], lines),
        )
    )


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of errors in tissue."""
    titles = {"chi_pos": figures.CHI_POS, "chi_neg": figures.CHI_NEG}
    panels = [
        figures.Bars(
            f"{titles[source]}: NRMSE in tissue (%)",
            [row["title"] for row in rows],
            {
                name: [number(row["nrmse_percent"][name]["tissue"][source]) for row in rows]
                for name in _PROTOCOLS
            },
        )
        for source in SOURCES
    ]
    return figures.bars(panels)
