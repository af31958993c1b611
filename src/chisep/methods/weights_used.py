"""The weights that a method computes with, and what they predict."""

from __future__ import annotations

from chisep.errors import InputError
from chisep.io.files import checksum
from chisep.methods.registry import METHODS
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.networks.training_range import beyond_training
from chisep.types import Maps

NOT_TRAINED = "was not trained on such scans"
"""Words of the warning of a network outside of the range of its training."""


def config_for(name: str, options: NetworkOptions) -> NetworkOptions | None:
    """Config of a network method; None for a solver, which has its own defaults.

    Raises
    ------
    InputError
        If weights are given to a method that is not a network.
    """
    if METHODS[name].is_network:
        return options
    if options.weights:
        raise InputError(
            "--weights",
            found=f"weights for {name}, which is no network",
            expected=f"one of: {', '.join(m.name for m in METHODS.values() if m.is_network)}",
            fix="Choose another method, or leave the weights out.",
        )
    return None


def tells_sigma(name: str, options: NetworkOptions) -> bool:
    """Whether a method predicts its uncertainty; arguments and errors as of `weights_used`."""
    method = METHODS[name]
    if config_for(name, options) is None:
        return False
    proximal = network_weights.description_of(options.weights or method.weights[0]).config.proximal
    return proximal is not None and proximal.uncertainty


def weights_used(name: str, options: NetworkOptions, *, chi_given: bool) -> list[dict[str, str]]:
    """Weights that a method computes with, for the record; empty for a solver.

    Parameters
    ----------
    name
        Of the method.
    options
        Chosen weights.
    chi_given
        Whether a χ map is given; otherwise a network computes one.

    Returns
    -------
    list of dict
        Of each file of weights: name, checksum, training data, their licence.

    Raises
    ------
    InputError
        If weights cannot be found or read, or are given to a method that is no network.
    """
    return [_record(file) for file in weight_files(name, options, chi_given=chi_given)]


def weight_files(name: str, options: NetworkOptions, *, chi_given: bool) -> list[str]:
    """List the files or names of the weights that a method computes with, its own first.

    Parameters and errors as of `weights_used`.
    """
    method = METHODS[name]
    if config_for(name, options) is None:
        return []
    own = options.weights or method.weights[0]
    inputs = network_weights.description_of(own).config.inputs
    files = [own]
    if "r2prime" in inputs and "r2prime" not in method.needs:
        files.append(options.rate_weights)
    if "qsm" in inputs and not chi_given:
        files.append(options.chi_weights)
    return files


def refinement(name: str, options: NetworkOptions) -> int:
    """Count the iterations of the solver that refines the estimate of a method; 0 without a refinement.

    Parameters
    ----------
    name
        Of the method.
    options
        Weights and iterations that were chosen.
    """
    if config_for(name, options) is None:
        return 0
    proximal = network_weights.description_of(options.weights or METHODS[name].weights[0]).config.proximal
    return options.refinement if proximal is not None and proximal.uncertainty else 0


def range_warnings(name: str, maps: Maps, options: NetworkOptions) -> list[str]:
    """Warn of a network that is applied to a scan outside of the range of its training.

    Parameters
    ----------
    name
        Of the method.
    maps
        Of the scan.
    options
        Weights that were chosen.
    """
    said = []
    for file in weight_files(name, options, chi_given=maps.chi_ppm is not None):
        trained = network_weights.description_of(file)
        limits = network_weights.read_header(trained.header).training_range
        if limits is not None and (beyond := beyond_training(limits, maps)):
            weights = trained.header.get("name", network_weights.find_weights(file).stem)
            said.append(
                f"network {weights} {NOT_TRAINED}: {'; '.join(beyond)}. Its result may be "
                "wrong without another sign of it"
            )
    return said


def _record(weights: str) -> dict[str, str]:
    path, header = network_weights.find_weights(weights), network_weights.description_of(weights).header
    return {
        "Name": str(header.get("name", path.stem)),
        "SHA256": checksum(path),
        "TrainingData": str(header.get("training_data", {}).get("dataset", "not stated")),
        "LicenceOfTrainingData": str(header.get("licence_of_data", "not stated")),
    }
