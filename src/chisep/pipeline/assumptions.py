"""What is assumed of a session where its data do not state it: for `bids-check`, records and the report."""

from __future__ import annotations

from dataclasses import dataclass

from chisep.io import bids
from chisep.physics.relaxation import pseudo_r2_hz
from chisep.physics.signal import default_relaxivity
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.relaxometry import FEWEST_ECHOES


@dataclass(frozen=True)
class Assumption:
    """One assumption.

    Parameters
    ----------
    text
        In words, with the option that states it otherwise.
    stages
        Stages whose results depend on it.
    """

    text: str
    stages: tuple[str, ...]


def assumptions(
    session: bids.Session,
    b0_t: float,
    field: FieldConfig,
    *,
    b0_from_affine: tuple[float, float, float] | None,
    dr_stated: bool,
) -> list[Assumption]:
    """List what is assumed of a session.

    Parameters
    ----------
    session
        Raw series.
    b0_t
        Field strength.
    field
        Settings of the field map.
    b0_from_affine
        B0 in voxel axes if it comes from the affine alone; None if the user or a sidecar states it.
    dr_stated
        Whether D_r is given or calibrated.
    """
    found = [*_of_phase(session.megre, field)]
    if b0_from_affine is not None:
        i, j, k = b0_from_affine
        found.append(
            Assumption(
                f"B0 along scanner z: ({i:.3f}, {j:.3f}, {k:.3f}) in voxel axes, from the affine",
                ("background", "qsm", "separation"),
            )
        )
    if len(session.megre.te_s) < FEWEST_ECHOES:  # neither R2* nor sources
        return found
    if session.mese is None:
        r2 = pseudo_r2_hz(b0_t)
        text = f"R2 of {r2:.1f} 1/s everywhere (pseudo-R2), so that R2' = R2* − {r2:.1f}"
        found.append(Assumption(text, ("relaxometry",)))
    elif session.mese.b0_t is None:
        text = "that the spin echo is of the field strength of the gradient echo"
        found.append(Assumption(text, ("relaxometry",)))
    if not dr_stated:
        d_r = default_relaxivity(b0_t).pos_hz_per_ppm
        text = f"D_r of {d_r:.4g} 1/s/ppm for both sources at {b0_t:g} T; --dr for another"
        found.append(Assumption(text, ("separation",)))
    return found


def _of_phase(megre: bids.Series, field: FieldConfig) -> list[Assumption]:
    texts = []
    if not megre.phase_units:
        texts.append("the scale of the phase, recognised by its values")
    elif megre.phase_units.lower() == "arbitrary":
        texts.append("the scale of the phase, recognised by its values (Units are arbitrary)")
    if field.phase_sign == 1:
        texts.append("phase that grows with the field; --field-map.phase-sign -1 for the opposite")
    if field.bipolar is None and len(megre.te_s) > 1:
        texts.append(
            "read-out of all echoes in one direction (unipolar) unless the images show otherwise, as "
            "sidecars do not state it"
        )
    return [Assumption(text, ("field",)) for text in texts]
