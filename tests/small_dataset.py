"""A BIDS dataset with labelled maps of small heads, as a group with scans in several orientations has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chisep.io import bids, nifti
from chisep.io.files import write_json
from tests.solvers.head import make_head

DIRECTIONS = ((0.0, 0.0, 1.0), (0.0, 0.6, 0.8))


def write_dataset(root: Path, subjects: Sequence[str], shape: tuple[int, int, int] = (20, 22, 18)) -> Path:
    """Write maps of two orientations, labels and masks of every subject."""
    bids.write_dataset_description(root, "Small heads")
    maps, labels, masks = (root / "derivatives" / name for name in ("maps", "labels", "truth"))
    for number, subject in enumerate(subjects):
        for pose, direction in enumerate(DIRECTIONS, start=1):
            head = make_head(shape, b0_direction=direction)
            measured = head.maps(field_noise_ppm=1e-3, r2prime_noise_ppm=1e-2, seed=10 * number + pose)
            assert measured.r2prime_hz is not None
            volumes = {
                ("fieldmap", "local"): measured.field_ppm,
                ("R2primemap", None): measured.r2prime_hz,
                ("R2starmap", None): measured.r2prime_hz + 14 * head.mask,
            }
            affine = head.grid.matrix()
            for (suffix, desc), volume in volumes.items():
                path = bids.derivative_path(maps, subject, suffix, desc=desc)
                path = path.with_name(path.name.replace("_", f"_acq-ori{pose}_", 1))
                nifti.save(path, volume.numpy(), affine)
                facts = {"B0DirectionVoxelAxes": list(direction), "MagneticFieldStrength": 3.0}
                write_json(bids.sidecar_of(path), facts)
        truth = {
            "paramagnetic": head.chi_pos_ppm,
            "diamagnetic": head.chi_neg_ppm,
            "cosmos": head.chi_ppm,
        }
        for desc, volume in truth.items():
            nifti.save(bids.derivative_path(labels, subject, "Chimap", desc=desc), volume.numpy(), affine)
        brain = bids.derivative_path(masks, subject, "mask", desc="brain")
        nifti.save(brain, head.mask.numpy(), affine, dtype=np.uint8)
    return root
