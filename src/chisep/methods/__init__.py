"""Methods behind `separate` and `invert`: the registry, and one interface for all of them."""

from chisep.methods.registry import DEFAULTS, METHODS, Method, MethodsConfig, Target, find, settings
from chisep.methods.solve import check_device, invert, separate
from chisep.methods.weights_used import (
    NOT_TRAINED,
    config_for,
    range_warnings,
    refinement,
    tells_sigma,
    weights_used,
)

__all__ = [
    "DEFAULTS",
    "METHODS",
    "NOT_TRAINED",
    "Method",
    "MethodsConfig",
    "Target",
    "check_device",
    "config_for",
    "find",
    "invert",
    "range_warnings",
    "refinement",
    "separate",
    "settings",
    "tells_sigma",
    "weights_used",
]
