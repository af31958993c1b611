"""Model card of a trained network in Markdown, from the header of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from chisep.errors import InputError
from chisep.networks.training_range import TrainingRange

_LIMITS = """\
## What it was not tested on
Nothing is known of how well this network works in people: there are no in-vivo maps with known χ_pos and
χ_neg. It was not tested on other {protocols}, nor
on diseases these do not have. It is no medical device and no basis for a diagnosis."""


def model_card(card: Mapping[str, Any]) -> str:
    """Write the model card of a network.

    Parameters
    ----------
    card
        One item of `chisep.api.weights.weight_cards`.

    Returns
    -------
    str
        Markdown: purpose, network, training data and licence, training, what it was not tested on.

    Raises
    ------
    InputError
        If an entry is missing in the header of the weights.
    """
    try:
        return _page(card)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "model card",
            found=f"a header of weights with missing or wrong entries ({error})",
            expected="weights that `chisep train` of this version wrote",
            fix="Leave --card out to see the header.",
        ) from error


def _page(card: Mapping[str, Any]) -> str:
    network, recipe, data = card["network"], card["recipe"], card["training_data"]
    unrolled = network["unrolled"]
    norm = {"none": "no"}.get(network["unet"]["norm"], network["unet"]["norm"])
    shape = f"U-net of {_joined(network['unet']['widths'], '-')} channels, {norm} norm"
    if unrolled:
        shape += f", {unrolled['iterations']} iterations with gradient steps, α from {unrolled['alpha']:g}"
    if proximal := network.get("proximal"):
        shape += f", {proximal['passes']} cascades with data-consistency steps"
    optimiser, crops, made_by = recipe["optimiser"], recipe["crops"], card["made_by"]
    loss = card["metrics"]["validation_loss"]
    statistics = [f"{name} {mean:.4f} ± {sd:.4f}" for name, (mean, sd) in card["statistics"].items()]
    protocol = recipe.get("protocol")
    rows = {
        "from": _joined(network["inputs"]),
        "to": _joined(network["outputs"]),
        "network": f"{shape}; {card['parameters']:,} parameters, {card['bytes'] / 1e6:.1f} MB",
        "B0": "along the third axis; other scans are rotated" if network["b0_along_z"] else "any direction",
        "trained on": f"{data['dataset']}: subjects {_joined(data['train'])}",
        **({"started from": _start(start)} if (start := card.get("start")) else {}),
        "best epoch selected on": f"subjects {_joined(data['validation'])}",
        "licence of the data": card["licence_of_data"],
        **({"protocols": _protocol(protocol)} if protocol else {}),
        **({"range": limits} if (limits := _training_range(card.get("range"))) else {}),
        "mean ± SD of the data (ppm)": _joined(statistics),
        "training": f"{recipe['epochs']} epochs of {recipe['steps_per_epoch']} batches of "
        f"{recipe['batch_size']} crops of {crops['size']}³, learning rate {optimiser['learning_rate']:g}, "
        f"seed {recipe['seed']}{_averaged(optimiser)}",
        **({"after training": after} if (after := card.get("after_training")) else {}),
        "loss": _joined(f"{name} {weight:g}" for name, weight in recipe["loss"].items() if weight),
        "best validation loss": f"{loss:.4f} after step {card['best_step']}",
        "made by": f"chisep {made_by['chisep']}, commit {made_by['commit']}",
    }
    return "\n".join(
        (
            f"# {card['name']}\n",
            f"**{_as_sentence(card['trust'])}.**\n",
            f"{_as_sentence(card['summary'])} ({card['reference']}).\n",
            "| | |",
            "|---|---|",
            *(f"| {name} | {text} |" for name, text in rows.items()),
            "",
            _LIMITS.format(
                protocols="protocols than those above, nor on other data than digital phantoms"
                if protocol
                else "field strengths, voxel sizes or contrasts than those of its training data"
            ),
            "",
        )
    )


def _training_range(limits: Mapping[str, Any] | None) -> str:
    """Say which scans are within the training; a scan beyond is a warning."""
    if limits is None:
        return ""
    texts = msgspec.convert(limits, TrainingRange).texts()
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def _start(start: Mapping[str, Any]) -> str:
    """Describe the initial weights of the training."""
    data = start["training_data"]
    before = f" that started from {_start(earlier)}" if (earlier := start.get("start")) else ""
    return (
        f"step {start['best_step']} of an earlier training on {data['dataset']}: subjects "
        f"{_joined(data['train'])}{before}"
    )


def _averaged(optimiser: Mapping[str, Any]) -> str:
    steps = optimiser.get("average_steps")
    return f", average of about the last {steps} steps" if steps else ""


def _protocol(ranges: Mapping[str, Any]) -> str:
    """Describe the random protocols of crops."""
    axial = ranges.get("axial_share")
    across = f", {100 * axial:.0f} % of them across the long axis, others across any" if axial else ""
    texts = [
        f"3 T, 1 mm, B0 along the head, D_r 114 in {100 * ranges['standard_share']:.0f} % of crops; "
        f"in others B0 {_range(ranges['b0_t'])} T within {ranges['tilt_deg']:g}° of the head",
        f"voxels of {_range(ranges['voxel_mm'])} mm, "
        f"slices up to {ranges['slice_ratio']:g} times as thick{across}",
        f"D_r,pos {_range(ranges['dr_hz_per_ppm'])} 1/s/ppm at 3 T, D_r,neg {_range(ranges['dr_ratio'])} "
        f"times that, assumed with errors up to {100 * ranges['dr_error']:.0f} %",
        f"SNR {_range(ranges['snr'])}",
        f"no field in rims up to {ranges['erosion_mm']:g} mm and {ranges['holes']} holes",
        f"background field up to {ranges['background_ppb']:g} ppb and other errors up to "
        f"{ranges['unexplained_ppb']:g} ppb",
        f"no spin echo in {100 * ranges['gre_only_share']:.0f} %",
        *_later_options(ranges),
    ]
    return "; ".join(texts)


def _later_options(ranges: Mapping[str, Any]) -> list[str]:
    """Describe options that headers of older weights do not have."""
    contrast = ranges.get("contrast", {})
    shares = {
        "without errors beyond those of the noise maps": ranges.get("clean_share"),
        "with D_r or the field off the model": ranges.get("violated_share"),
        "with random contrasts of the sources": contrast.get("share"),
        "painted by the label map with random levels": contrast.get("labels_share"),
    }
    texts = [f"{100 * share:.0f} % {text}" for text, share in shares.items() if share]
    if ranges.get("structured_ppb"):
        share = 100 * ranges.get("structured_share", 0.5)
        texts.insert(0, f"structured field errors up to {ranges['structured_ppb']:g} ppb in {share:.0f} %")
    if share := ranges.get("stated_share"):
        texts.insert(
            0, f"noise maps include the errors of registration, fit and field in {100 * share:.0f} %"
        )
    return texts


def _range(ends: Iterable[float]) -> str:
    return "–".join(f"{end:g}" for end in ends)


def _joined(values: Iterable[Any], by: str = ", ") -> str:
    return by.join(str(value) for value in values)


def _as_sentence(text: str) -> str:
    """Begin with a capital, but for names such as χ-sepnet."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
