"""FreeSurfer numbers and names of regions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

_CORTEX = (
    "bankssts",
    "caudalanteriorcingulate",
    "caudalmiddlefrontal",
    "corpuscallosum",
    "cuneus",
    "entorhinal",
    "fusiform",
    "inferiorparietal",
    "inferiortemporal",
    "isthmuscingulate",
    "lateraloccipital",
    "lateralorbitofrontal",
    "lingual",
    "medialorbitofrontal",
    "middletemporal",
    "parahippocampal",
    "paracentral",
    "parsopercularis",
    "parsorbitalis",
    "parstriangularis",
    "pericalcarine",
    "postcentral",
    "posteriorcingulate",
    "precentral",
    "precuneus",
    "rostralanteriorcingulate",
    "rostralmiddlefrontal",
    "superiorfrontal",
    "superiorparietal",
    "superiortemporal",
    "supramarginal",
    "frontalpole",
    "temporalpole",
    "transversetemporal",
    "insula",
)
"""Regions of FreeSurfer's aparc in the order of their numbers, which start at 1."""

_TWO_SIDED = {
    (2, 41): "Cerebral-White-Matter",
    (3, 42): "Cerebral-Cortex",
    (4, 43): "Lateral-Ventricle",
    (5, 44): "Inf-Lat-Vent",
    (7, 46): "Cerebellum-White-Matter",
    (8, 47): "Cerebellum-Cortex",
    (10, 49): "Thalamus",
    (11, 50): "Caudate",
    (12, 51): "Putamen",
    (13, 52): "Pallidum",
    (17, 53): "Hippocampus",
    (18, 54): "Amygdala",
    (25, 57): "Lesion",
    (26, 58): "Accumbens-area",
    (27, 59): "Substancia-Nigra",
    (28, 60): "VentralDC",
    (30, 62): "vessel",
    (31, 63): "choroid-plexus",
}
_ONE_SIDED = {
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    24: "CSF",
    72: "5th-Ventricle",
    77: "WM-hypointensities",
    80: "non-WM-hypointensities",
    85: "Optic-Chiasm",
    251: "CC_Posterior",
    252: "CC_Mid_Posterior",
    253: "CC_Central",
    254: "CC_Mid_Anterior",
    255: "CC_Anterior",
}


@cache
def freesurfer_names() -> Mapping[int, str]:
    """Return FreeSurfer's names by its numbers: aseg, SynthSeg, and the Desikan-Killiany cortex."""
    names = dict(_ONE_SIDED)
    for (left, right), name in _TWO_SIDED.items():
        names |= {left: f"Left-{name}", right: f"Right-{name}"}
    for number, name in enumerate(_CORTEX, start=1):
        names |= {1000 + number: f"ctx-lh-{name}", 2000 + number: f"ctx-rh-{name}"}
    return names
