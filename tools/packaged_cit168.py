"""Write the packaged CIT168 atlas from the published one.

    python tools/packaged_cit168.py SOURCE.nii.gz LABELS.json

The source encodes each voxel as red and green, the two most likely labels, and blue and alpha, their
probabilities of 255. The packaged image has these four numbers along its fourth axis.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from chisep.io import nifti
from chisep.io.tsv import write_table
from chisep.regions.cit168 import ATLAS_FILE, DATA, NAMES_FILE


def main() -> None:
    """Convert the atlas and the names of its labels."""
    source, labels = map(Path, sys.argv[1:])
    image = nib.load(source)
    voxels = np.asarray(image.dataobj)
    channels = np.stack([voxels[channel] for channel in "RGBA"], axis=-1)
    nifti.save(DATA / ATLAS_FILE, channels, image.affine, dtype=np.uint8)
    names = json.loads(labels.read_text(encoding="utf-8"))["labels"]
    rows = [(index, _name(name)) for index, name in enumerate(names) if index]
    write_table(DATA / NAMES_FILE, ("index", "name"), rows)


def _name(name: str) -> str:
    side, structure = name.replace("-", " ").strip().split(" ", 1)
    return f"{'Left' if side == 'L' else 'Right'} {structure}"


if __name__ == "__main__":
    main()
