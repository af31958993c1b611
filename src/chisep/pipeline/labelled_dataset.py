"""Simulated datasets with reference labels: sources from several head orientations instead of the truth.

COSMOS of the local fields gives χ; non-negative least squares of χ and R2' gives the sources, as the labels
of χ-sepnet were made (Human Brain Mapping 2025). Such labels have the errors of labels of real people: noise,
and residual misregistration between the scans.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.pipeline.engine import DeclaredFiles, Stage, StageCache, StageResult
from chisep.progress import Progress
from chisep.simulation.dataset import MAPS, TRUTH, SimulateConfig, acquired, simulate
from chisep.solvers.cosmos import CosmosConfig, cosmos, nonnegative_sources
from chisep.types import Volume

LABELS = Path("derivatives", "labels")
"""Where the labels lie within the raw dataset."""

_FEWEST_ORIENTATIONS = 3


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(SimulateConfig):
    """Simulated scan sessions, with labels from their orientations on demand."""

    labels_from_orientations: bool = False
    """Make χ_pos and χ_neg from fields of all orientations and R2' as well, in derivatives/labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels_from_orientations:
            return
        if self.orientations < _FEWEST_ORIENTATIONS:
            raise InputError(
                "labels_from_orientations",
                found=f"{self.orientations} head orientations",
                expected=f"{_FEWEST_ORIENTATIONS} or more",
                fix="Add --orientations 6.",
            )
        object.__setattr__(self, "maps", True)


def simulate_labelled(config: LabelledConfig, progress: Progress | None = None) -> list[str]:
    """Simulate a dataset and, if requested, reference labels from its head orientations.

    Parameters
    ----------
    config
        Options of the simulation, and whether to compute labels.
    progress
        Called with the subject that is simulated or labelled, and with how many are done.

    Returns
    -------
    list of str
        Labels of the subjects, without `sub-`.

    Raises
    ------
    InputError
        As `chisep.simulation.dataset.simulate`.
    OutputError
        If the dataset cannot be written.

    Notes
    -----
    Fields and R2' come from the map-level simulation (derivatives/maps): they have the noise of a fit to the
    echoes and the residual misregistration, but neither phase unwrapping nor background removal. R2' is
    that of the first orientation, and the mask is the brain mask of the truth. Labels are computed again only
    when the maps have changed.
    """
    names = simulate(config, progress)
    if not config.labels_from_orientations:
        return names
    root = config.out / LABELS
    bids.write_dataset_description(root, "Sources from several head orientations", derivative=True)
    for done, name in enumerate(names):
        if progress is not None:
            progress(f"sub-{name}: labels", done, len(names))
        StageCache(config.out, root, f"sub-{name}").do(_stage(config, name))
    if progress is not None:
        progress("labels", len(names), len(names))
    return names


def _stage(config: LabelledConfig, name: str) -> Stage:
    """Stage that computes the labels of one subject from its maps."""
    subject = config.out / MAPS, name
    orientations = [f"ori{number + 1}" for number in range(config.orientations)]
    fields = [acquired(bids.derivative_path(*subject, "fieldmap", desc="local"), acq) for acq in orientations]
    r2prime = acquired(bids.derivative_path(*subject, "R2primemap"), orientations[0])
    mask = bids.derivative_path(config.out / TRUTH, name, "mask", desc="brain")
    outputs = [
        bids.derivative_path(config.out / LABELS, name, "Chimap", desc=desc)
        for desc in ("paramagnetic", "diamagnetic", "cosmos")
    ]
    relaxivity, options = config.tissue.relaxivity(config.b0_t), CosmosConfig()

    def work(_declared: DeclaredFiles) -> StageResult:
        image = nifti.load_mask(mask)
        grid, inside = nifti.grid_of(image), torch.from_numpy(image.data)
        # In head axes the B0 direction differs between scans; the affine is that of the first scan.
        directions = [bids.read_sidecar(field, config.out)["B0DirectionVoxelAxes"] for field in fields]
        measured = torch.stack([_volume(field) for field in fields])
        chi = cosmos(measured, inside, directions, grid, options)
        sources = nonnegative_sources(chi.chi_ppm, _volume(r2prime) * inside, relaxivity)
        for path, volume in zip(
            outputs, (sources.chi_pos_ppm, sources.chi_neg_ppm, chi.chi_ppm), strict=True
        ):
            nifti.save(path, volume.numpy(), image.affine)
        facts = {"B0DirectionsVoxelAxes": directions, "Iterations": chi.convergence.iterations}
        return StageResult(facts, chi.convergence.warnings)

    return Stage(
        "labels",
        "χ_pos and χ_neg (a positive magnitude) by non-negative least squares of R2' and χ; χ by COSMOS",
        [*fields, *map(bids.sidecar_of, fields), r2prime, mask],
        outputs,
        {
            "DrPositiveHzPerPpm": relaxivity.pos_hz_per_ppm,
            "DrNegativeHzPerPpm": relaxivity.neg_hz_per_ppm,
            **asdict(options),
        },
        work,
    )


def _volume(path: Path) -> Volume:
    return torch.from_numpy(nifti.load(path).data)
