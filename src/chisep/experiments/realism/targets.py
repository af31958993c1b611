"""Published whole-brain and regional values, with the range that counts as agreement."""

from __future__ import annotations

from dataclasses import dataclass

from chisep.simulation import labelmap


@dataclass(frozen=True)
class Target:
    """A published number, and the range around it that counts as agreement.

    Parameters
    ----------
    map, statistic
        Map and statistic: a key of `MAP_UNITS`, a key of `statistics`.
    published, low, high
        In the map's unit.
    source
        Where it was measured.
    """

    map: str
    statistic: str
    published: float
    low: float
    high: float
    source: str

    @classmethod
    def around(cls, map_name: str, statistic: str, published: float, part: float, source: str) -> Target:
        """Return a target with a relative tolerance around the published value."""
        low, high = sorted((published * (1 - part), published * (1 + part)))
        return cls(map_name, statistic, published, low, high, source)


_COSMOS = "COSMOS of 12 orientations, one volunteer at 3 T, 1.06 mm"
_TRAINING = "training data of χ-sepnet at 3 T (Human Brain Mapping 2025)"


TARGETS = (
    *(
        Target.around("chi", statistic, value, 0.25, _COSMOS)
        for statistic, value in (("p1", -53.0), ("p5", -34.0), ("p95", 41.0), ("p99", 107.0))
    ),
    Target("field", "sd", 11.0, 9.0, 13.0, "the same volunteer"),
    *(
        Target.around(name, statistic, value, 0.3, _TRAINING)
        for name, statistic, value in (
            ("chi_pos", "mean", 26.0),
            ("chi_pos", "sd", 35.0),
            ("chi_neg", "mean", 27.0),
            ("chi_neg", "sd", 28.0),
            ("r2prime", "mean", 5.9),
            ("r2star", "mean", 18.1),
            ("r2", "mean", 12.7),
        )
    ),
)
"""Whole-brain values measured in vivo."""


@dataclass(frozen=True)
class RegionTarget:
    """Published mean sources of a region.

    Parameters
    ----------
    name
        Of the region.
    labels
        Label numbers of both sides.
    chi_pos_ppb, chi_neg_ppb
        Mean over people; χ_neg is a magnitude.
    in_atlas
        Whether the atlas lists the region; if not, the values are a collection of the literature.
    """

    name: str
    labels: tuple[int, ...]
    chi_pos_ppb: float
    chi_neg_ppb: float
    in_atlas: bool = True


PEOPLE_SD = 0.25
"""Agreement of a regional mean: the atlas' SD between people is 6 to 25 % of the mean, region by region."""
_CALLOSUM_BODY = (252, labelmap.CALLOSUM_BODY, 254)


_CEREBRAL_WHITE = tuple(
    label
    for label in labelmap.WHITE_MATTER
    if label not in (*labelmap.CEREBELLAR_WHITE, *labelmap.PEDUNCLE, *labelmap.CORTICOSPINAL)
)
REGION_TARGETS = (
    RegionTarget("pallidum", (*labelmap.PALLIDUM, *labelmap.PALLIDUM_INTERNUM), 132.0, 13.0),
    RegionTarget("putamen", labelmap.PUTAMEN, 77.0, 10.0),
    RegionTarget("caudate nucleus", labelmap.CAUDATE, 48.0, 8.0),
    RegionTarget("nucleus accumbens", (26, 58), 45.0, 23.0),
    RegionTarget("substantia nigra", labelmap.NIGRA, 116.0, 11.0),
    RegionTarget("red nucleus", labelmap.RED_NUCLEUS, 112.0, 10.0),
    RegionTarget("subthalamic nucleus", labelmap.SUBTHALAMIC, 112.0, 15.0),
    RegionTarget("whole thalamus", (*labelmap.THALAMUS, *labelmap.PULVINAR), 23.0, 21.0),
    RegionTarget("pulvinar", labelmap.PULVINAR, 52.0, 4.0),
    RegionTarget("genu of the corpus callosum", (labelmap.CALLOSUM_GENU,), 18.0, 31.0),
    RegionTarget("body of the corpus callosum", _CALLOSUM_BODY, 15.0, 35.0),
    RegionTarget("splenium of the corpus callosum", (labelmap.CALLOSUM_SPLENIUM,), 17.0, 42.0),
    RegionTarget("cerebral peduncle", labelmap.PEDUNCLE, 23.0, 44.0),
    RegionTarget("anterior limb of the internal capsule", labelmap.CAPSULE_ANTERIOR, 15.0, 41.0),
    RegionTarget("posterior limb of the internal capsule", labelmap.CAPSULE_POSTERIOR, 8.0, 52.0),
    # The atlas lists its parts, with χ_neg from 27 to 32.
    RegionTarget("corona radiata", labelmap.CORONA_RADIATA, 14.0, 29.5),
    RegionTarget("posterior thalamic radiation", labelmap.THALAMIC_RADIATION, 13.0, 41.0),
    RegionTarget("superior longitudinal fasciculus", labelmap.LONGITUDINAL, 23.0, 33.0),
    RegionTarget("whole white matter", _CEREBRAL_WHITE, 17.0, 29.0),
    RegionTarget("cerebral cortex", labelmap.CEREBRAL_CORTEX, 39.0, 19.0, in_atlas=False),
    RegionTarget("dentate nucleus", labelmap.DENTATE, 168.0, 16.0, in_atlas=False),
)
"""Regions by the atlas of 106 brains; cortex and dentate nucleus as qsm-forward collects them."""
