"""Properties of each tissue: sources, relaxation and proton density of every label.

Regional χ_pos and χ_neg are means of the χ-separation atlas of 106 healthy brains (Min 2024,
10.1002/nbm.5226) where it lists the region; cortex and dentate nucleus follow the values that
qsm-forward collects from the literature. Venous blood has 270 ppb (190 ppb there). Regions that neither
lists take the values of the tissue they resemble.
T1 at 3 T follows Wansapura 1999 (JMRI 9:531) and Stanisz 2005 (10.1002/mrm.20605); R2 is scaled
so that a brain's mean comes near the 12.7 1/s published with χ-sepnet (Human Brain Mapping 2025), higher in
iron-rich nuclei. Susceptibility outside the brain is relative to soft tissue (Schenck 1996,
10.1118/1.597854).
"""

from __future__ import annotations

from dataclasses import dataclass

from chisep.simulation import labelmap

AIR_PPM = 9.4
"""χ of air relative to soft tissue."""
BONE_PPM = -2.0
"""χ of cortical bone relative to soft tissue."""


@dataclass(frozen=True)
class Region:
    """Properties of one kind of tissue.

    Parameters
    ----------
    name
        Of the structure.
    labels
        Label numbers: (left, right), or those without a side.
    chi_pos_ppb, chi_neg_ppb
        Mean sources; χ_neg is a magnitude.
    r2_hz
        R2 at 3 T in 1/s.
    t1_s
        T1 at 3 T in seconds.
    m0
        Proton density relative to CSF.
    brain
        Whether the brain mask contains it.
    chi_outside_ppm
        χ relative to soft tissue, for tissue outside of the brain.
    """

    name: str
    labels: tuple[int, ...]
    chi_pos_ppb: float
    chi_neg_ppb: float
    r2_hz: float
    t1_s: float
    m0: float
    brain: bool = True
    chi_outside_ppm: float = 0.0

    def names(self) -> tuple[tuple[int, str], ...]:
        """Label numbers with their names, the side before the name where there are two sides."""
        if len(self.labels) != 2:
            return tuple((label, self.name) for label in self.labels)
        return tuple(
            (label, f"{side} {self.name}") for label, side in zip(self.labels, ("left", "right"), strict=True)
        )


REGIONS = (
    # name, labels, χ_pos and χ_neg in ppb, R2 in 1/s, T1 in s, M0
    Region("cerebral white matter", labelmap.CEREBRAL_WHITE, 15.5, 28.5, 14.5, 0.85, 0.70),
    Region("cerebral cortex", labelmap.CEREBRAL_CORTEX, 37.0, 20.0, 12.5, 1.35, 0.82),
    Region("cerebellar white matter", (7, 46), 17.0, 29.0, 13.5, 0.90, 0.72),
    Region("cerebellar cortex", (8, 47), 39.0, 21.0, 11.5, 1.35, 0.82),
    Region("lateral ventricle", (4, 43), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("inferior lateral ventricle", (5, 44), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("third ventricle", (14,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("fourth ventricle", (15,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("fifth ventricle", (72,), 0.0, 0.0, 0.9, 4.0, 1.00),
    Region("choroid plexus", (31, 63), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("choroid plexus of the lateral ventricle", (136, 163), 20.0, 10.0, 5.0, 2.0, 0.95),
    Region("choroid plexus of the temporal horn", (137, 164), 20.0, 10.0, 5.0, 2.0, 0.95),
    # Without the pulvinar; with it the mean is the atlas' 23/21.
    Region("thalamus", labelmap.THALAMUS, 15.0, 26.0, 13.0, 1.15, 0.78),
    Region("pulvinar", labelmap.PULVINAR, 52.0, 4.0, 14.0, 1.15, 0.78),
    Region("caudate nucleus", (11, 50), 48.0, 8.0, 15.0, 1.25, 0.80),
    Region("putamen", (12, 51), 77.0, 10.0, 17.0, 1.15, 0.80),
    # The atlas has one value for the pallidum (132/13): the outer segment holds more iron than the inner.
    Region("outer pallidum", labelmap.PALLIDUM, 138.0, 11.0, 23.0, 0.95, 0.74),
    Region("inner pallidum", labelmap.PALLIDUM_INTERNUM, 123.0, 16.0, 22.0, 0.95, 0.74),
    Region("nucleus accumbens", (26, 58), 45.0, 23.0, 14.0, 1.25, 0.80),
    Region("hippocampus", (17, 53), 30.0, 15.0, 11.5, 1.35, 0.82),
    Region("amygdala", (18, 54), 30.0, 15.0, 11.5, 1.35, 0.82),
    Region("ventral diencephalon", labelmap.VENTRAL_DC, 30.0, 30.0, 14.0, 1.00, 0.75),
    Region("substantia nigra", labelmap.NIGRA, 117.0, 9.0, 21.0, 0.95, 0.74),
    Region("red nucleus", labelmap.RED_NUCLEUS, 121.0, 8.0, 19.5, 0.90, 0.74),
    Region("subthalamic nucleus", labelmap.SUBTHALAMIC, 127.0, 13.0, 19.5, 0.95, 0.74),
    Region("dentate nucleus", labelmap.DENTATE, 187.0, 13.0, 20.0, 1.00, 0.74),
    Region("brain stem", (labelmap.BRAIN_STEM,), 20.0, 32.0, 13.0, 1.00, 0.74),
    Region("cerebral peduncle", labelmap.PEDUNCLE, 23.0, 44.0, 13.5, 0.90, 0.72),
    Region("splenium of the corpus callosum", (labelmap.CALLOSUM_SPLENIUM,), 13.0, 42.0, 14.0, 0.80, 0.68),
    Region("body of the corpus callosum", (252, labelmap.CALLOSUM_BODY, 254), 15.0, 36.0, 14.0, 0.80, 0.68),
    Region("genu of the corpus callosum", (labelmap.CALLOSUM_GENU,), 16.5, 31.0, 14.5, 0.80, 0.68),
    Region("anterior limb of the internal capsule", labelmap.CAPSULE_ANTERIOR, 11.5, 45.0, 14.0, 0.85, 0.70),
    Region("posterior limb of the internal capsule", labelmap.CAPSULE_POSTERIOR, 6.0, 49.5, 12.5, 0.90, 0.71),
    Region("corona radiata", labelmap.CORONA_RADIATA, 11.0, 26.5, 13.0, 0.87, 0.70),
    Region("posterior thalamic radiation", labelmap.THALAMIC_RADIATION, 10.5, 40.0, 12.5, 0.85, 0.70),
    Region("superior longitudinal fasciculus", labelmap.LONGITUDINAL, 23.0, 33.0, 13.5, 0.85, 0.70),
    Region("cingulum", labelmap.CINGULUM, 17.0, 36.0, 13.5, 0.85, 0.70),
    Region("corticospinal tract of the brain stem", labelmap.CORTICOSPINAL, 18.0, 46.0, 12.5, 0.95, 0.73),
    Region("calcified pineal gland", (labelmap.PINEAL,), 20.0, 450.0, 40.0, 1.00, 0.50),
    Region("white-matter lesion", (25, 57), 12.0, 12.0, 8.0, 1.40, 0.85),
    Region("white-matter hypointensity", (77,), 12.0, 15.0, 9.0, 1.30, 0.82),
    Region("perivascular space", (30, 62), 5.0, 5.0, 5.0, 2.0, 0.90),
    Region("optic chiasm", (85,), 15.0, 25.0, 12.0, 1.00, 0.75),
    Region("cerebrospinal fluid", (labelmap.CSF,), 0.0, 0.0, 0.9, 4.0, 1.00, brain=False),
    Region("vein", (labelmap.VEIN,), 270.0, 0.0, 28.0, 1.60, 0.80, brain=False),
    Region("artery", (502,), 0.0, 0.0, 7.0, 1.65, 0.80, brain=False),
    Region("skull", (labelmap.SKULL,), 0.0, 0.0, 200.0, 0.50, 0.06, brain=False, chi_outside_ppm=BONE_PPM),
    Region("cortical bone", (516,), 0.0, 0.0, 500.0, 0.40, 0.03, brain=False, chi_outside_ppm=BONE_PPM),
    # Marrow lies between thin plates of bone, so its mean χ is between bone's and fat's.
    Region("cancellous bone", (515,), 0.0, 0.0, 60.0, 0.40, 0.35, brain=False, chi_outside_ppm=BONE_PPM / 2),
    Region("soft tissue of the head", (labelmap.SOFT_TISSUE,), 0.0, 0.0, 22.0, 0.80, 0.75, brain=False),
    Region("other soft tissue", (507,), 0.0, 0.0, 22.0, 0.80, 0.75, brain=False),
    Region("eye", (506,), 0.0, 0.0, 3.0, 3.5, 0.98, brain=False),
    Region("rectus muscle", (508,), 0.0, 0.0, 28.0, 1.40, 0.78, brain=False),
    Region("mucosa", (509,), 0.0, 0.0, 12.0, 1.40, 0.85, brain=False),
    Region("skin", (511,), 0.0, 0.0, 30.0, 0.60, 0.60, brain=False),
    Region("spinal cord", (512,), 0.0, 0.0, 13.0, 0.95, 0.72, brain=False),
    Region("optic nerve", (530,), 0.0, 0.0, 12.0, 1.10, 0.75, brain=False),
    Region("air", (0,), 0.0, 0.0, 1000.0, 1.0, 0.0, brain=False, chi_outside_ppm=AIR_PPM),
    # Last, so that values which are drawn region by region stay those of heads without them.
    Region("calcified falx", (labelmap.FALX_CALCIFIED,), 0.0, 700.0, 60.0, 1.00, 0.40, brain=False),
    Region("calcified dura", (labelmap.DURA_CALCIFIED,), 0.0, 700.0, 60.0, 1.00, 0.40, brain=False),
)
"""All known labels; others count as cerebrospinal fluid.

Values are those of pure tissue: with veins and partial volumes, means over the 1 mm voxels of a label agree
with the published means.
"""

BRAIN_LABELS = tuple(label for region in REGIONS if region.brain for label in region.labels)
"""Labels of brain tissue and ventricles."""
