"""The command `completion`: scripts by which a shell completes commands, options and choices."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, Union

from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from chisep.cli.arguments import with_readable_help

_CONFIGS = {
    "explain": "chisep.provenance.explain.ExplainConfig",
    "separate": "chisep.api.files.SeparateConfig",
    "qsm": "chisep.api.files.QsmConfig",
    "cosmos": "chisep.api.orientations.CosmosFilesConfig",
    "regions": "chisep.api.regions.RegionsConfig",
    "simulate": "chisep.pipeline.labelled_dataset.LabelledConfig",
    "weights": "chisep.networks.weights.WeightsConfig",
    "dicom": "chisep.io.ingest.dicom.DicomConfig",
    "import": "chisep.io.ingest.nifti.ImportConfig",
    "bids-check": "chisep.pipeline.check.BidsCheckConfig",
    "evaluate": "chisep.api.evaluate.EvaluateConfig",
    "methods": "chisep.methods.MethodsConfig",
    "qsm-ci": "chisep.api.qsm_ci.QsmCiConfig",
    "doctor": "chisep.doctor.DoctorConfig",
    "completion": "chisep.cli.completion.CompletionConfig",
    "demo": "chisep.demo.DemoConfig",
}
"""Commands whose options have no prefixes."""


@dataclass(frozen=True)
class CompletionConfig:
    """Shell to complete in."""

    shell: Positional[Literal["bash", "zsh"]] = "bash"
    """Shell. bash: `chisep completion bash > ~/.local/share/bash-completion/completions/chisep`; zsh:
    `chisep completion zsh > ~/.zfunc/_chisep`, with ~/.zfunc in fpath before compinit."""


@dataclass(frozen=True)
class _Recipe:
    """Name of a recipe; `chisep train RECIPE --help` lists its options."""

    recipe: Positional[str]


def completion_script(shell: str, summaries: Mapping[str, str]) -> str:
    """Write the completion script of a shell, by tyro.

    Parameters
    ----------
    shell
        bash or zsh.
    summaries
        Every command with its summary.

    Returns
    -------
    str
        Script; it holds all options, so that nothing of chisep is loaded when a key is pressed.
    """
    from chisep.execution.config import CohortConfig
    from chisep.execution.orientations import OrientationsCohortConfig

    kinds: dict[str, Any] = {
        "run": Annotated[CohortConfig, arg(name="")],
        "orientations": Annotated[OrientationsCohortConfig, arg(name="")],
    }
    for name, place in _CONFIGS.items():
        module, _, config = place.rpartition(".")
        kinds[name] = _without_prefixes(getattr(import_module(module), config))
    kinds["reproduce"] = _experiments()
    kinds["train"] = _recipes()
    commands = [
        Annotated[kinds[name], subcommand(name, prefix_name=False, description=summary)]
        for name, summary in summaries.items()
    ]
    return _printed(Union[tuple(commands)], shell)  # noqa: UP007  # a union that is made at run time


def _without_prefixes(config: Any) -> Any:  # noqa: ANN401
    markers: Any = OmitArgPrefixes  # as a value: this type is chosen at run time
    return markers[config]


def _experiments() -> Any:  # noqa: ANN401
    """Experiments as commands of `reproduce`."""
    from chisep.experiments import EXPERIMENTS

    parts = [
        Annotated[
            _without_prefixes(experiment.load()[0]),
            subcommand(name, prefix_name=False, description=experiment.summary),
        ]
        for name, experiment in EXPERIMENTS.items()
        if _loads(experiment.load)
    ]
    return Union[tuple(parts)]  # noqa: UP007


def _recipes() -> Any:  # noqa: ANN401
    """Recipes as commands of `train`; without the packages for training, their name alone."""
    try:
        from chisep.training.command import config_of
        from chisep.training.recipes import recipes
    except ModuleNotFoundError:
        return _Recipe
    parts = [
        Annotated[config_of(name), subcommand(name, prefix_name=False, description=recipe.summary)]
        for name, recipe in recipes().items()
    ]
    return Union[tuple(parts)]  # noqa: UP007


def _loads(load: Callable[[], object]) -> bool:
    """Whether an experiment's packages are installed."""
    with suppress(ModuleNotFoundError):
        load()
        return True
    return False


def _printed(kinds: Any, shell: str) -> str:  # noqa: ANN401
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        with_readable_help(kinds, "chisep", ["--tyro-print-completion", shell])
    return printed.getvalue()
