"""The command line. The only package that prints or exits.

Each command is generated from the config dataclass of its owner. Owners are imported when their command
is called, so that `chisep --help` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import chisep
from chisep.cli.arguments import parse
from chisep.cli.memory import lack_of_memory, out_of_memory
from chisep.cli.terminal import (
    Ended,
    print_table,
    progress_bar,
    set_up_logging,
    sigterm_as_interrupt,
)
from chisep.errors import ChisepError, InputError

T = TypeVar("T")

_PIPE_CLOSED = 141

EPILOG = """\
Start with `chisep demo`: it simulates a scan, runs all stages and prints the path of the report.
`chisep COMMAND --help` or `chisep help COMMAND` explains a command.
Units: field and χ in ppm, R2, R2*, R2' in 1/s, TE in s.
"""


@dataclass(frozen=True)
class Command:
    """One-line summary of a command, and the function that runs it with the arguments after its name."""

    summary: str
    run: Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Arguments after the program's name; those of the process if None.

    Returns
    -------
    int
        Exit status: 0 if all went well, 1 for an error that the message explains, 2 for a wrong call, 130
        after Ctrl-C, 141 where the reader of the output closed it, and 143 after SIGTERM where that is waited
        for.
    """
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has enough, as `head` after its lines
        with suppress(OSError, ValueError):  # what is still buffered goes nowhere, without a message at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return status


def _main(arguments: list[str]) -> int:
    # Large pages, before torch allocates: with pages of 4 KB, allocation takes longer than the computation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for symbols that the encoding of the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"chisep {chisep.__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        return _fail(f"no command {arguments[0]!r}; there are: {', '.join(COMMANDS)}", status=2)
    lack = lack_of_memory()
    if lack is not None:
        return _fail(lack)
    set_up_logging()
    try:
        return command.run(arguments[1:])
    except ChisepError as error:
        return _fail(str(error))
    except BrokenPipeError:
        raise
    except (MemoryError, ImportError, RuntimeError) as error:
        message = out_of_memory(error)
        if message is None:
            raise
        return _fail(message)
    except OSError as error:  # a failing disk or network, without a message of chisep
        return _fail(f"the system refused: {error}")
    except KeyboardInterrupt as stop:
        said, status = ("ended", 143) if isinstance(stop, Ended) else ("interrupted", 130)
        return _fail(f"{said}; what was finished is kept, the same command goes on from there", status)


def _fail(message: str, status: int = 1) -> int:
    print(f"chisep: error: {message}", file=sys.stderr)
    return status


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: chisep [--version] [--help] COMMAND …\n")
    print("χ-separation: maps of iron (χ_pos) and myelin (χ_neg) from multi-echo MRI.\n\ncommands:")
    for name, command in COMMANDS.items():
        print(f"  {name:<{width}}  {command.summary}")
    print("\n" + EPILOG, end="")


def _parse(config: type[T], name: str, arguments: Sequence[str], *, prefixes: bool = False) -> T:
    """Parse the arguments of a command, whose summary heads its help."""
    return parse(config, name, arguments, COMMANDS[name].summary, prefixes=prefixes)


def _run(arguments: Sequence[str]) -> int:
    from chisep.cli.run_command import run_command

    return run_command(arguments, COMMANDS["run"].summary)


def _explain(arguments: Sequence[str]) -> int:
    from chisep.provenance.explain import ExplainConfig, explain
    from chisep.provenance.methods_text import write_methods

    config = _parse(ExplainConfig, "explain", arguments)
    if config.methods:
        print(*write_methods(config.file, config.raw), sep="\n")
        return 0
    found = explain(config.file, raw=config.raw, out=config.out)
    if config.json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        print(*found.lines(), sep="\n")
    return 0


def _separate(arguments: Sequence[str]) -> int:
    from chisep.api.files import SeparateConfig, separate_files

    config = _parse(SeparateConfig, "separate", arguments)
    with progress_bar() as show:
        written = separate_files(config, lambda done, total: show(config.separation.method, done, total))
    print(*written, sep="\n")
    return 0


def _qsm(arguments: Sequence[str]) -> int:
    from chisep.api.files import QsmConfig, qsm_files

    config = _parse(QsmConfig, "qsm", arguments)
    with progress_bar() as show:
        print(qsm_files(config, lambda done, total: show(config.inversion.method, done, total)))
    return 0


def _cosmos(arguments: Sequence[str]) -> int:
    from chisep.api.orientations import CosmosFilesConfig, cosmos_files

    config = _parse(CosmosFilesConfig, "cosmos", arguments)
    with progress_bar() as show:
        print(cosmos_files(config, lambda done, total: show("COSMOS", done, total)))
    return 0


def _orientations(arguments: Sequence[str]) -> int:
    from chisep.cli.orientations_command import orientations_command

    return orientations_command(arguments, COMMANDS["orientations"].summary)


def _train(arguments: Sequence[str]) -> int:
    try:
        from chisep.training.command import config_of, is_first_process, train_network
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("chisep"):
            raise
        raise InputError(
            "chisep train",
            found=f"no package {error.name}",
            expected="the optional packages for training",
            fix="pip install 'chisep[train]'",
        ) from error

    if not arguments or arguments[0] in ("-h", "--help"):
        _print_recipes()
        sys.exit(0 if arguments else 2)
    config = parse(config_of(arguments[0]), f"train {arguments[0]}", arguments[1:], prefixes=True)
    try:
        with progress_bar() as show:
            trained = train_network(config, show, bar=True)
    except SystemExit as ended:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from ended
    if not is_first_process():
        return 0
    epochs = config.recipe.epochs
    if trained.weights is None:
        print(f"stopped after {trained.epochs:g} of {epochs} epochs; the same command goes on from there")
    else:
        print(f"{trained.weights}: best validation loss {trained.best_loss:.4g} of {epochs} epochs")
    return 0


def _print_recipes() -> None:
    from chisep.training.recipes import recipes

    found = recipes()
    width = max(map(len, found))
    print(
        "usage: chisep train RECIPE --out DIR --data.dataset BIDS --data.train 01 … --data.validation 02 …\n"
    )
    print("recipes:")
    for name, recipe in found.items():
        widths = "-".join(map(str, recipe.network.unet.widths))
        print(f"  {name:<{width}}  {recipe.summary}; {widths} channels")
    print("\n`chisep train RECIPE --help` lists all options, with every number of the recipe.")
    print("The same command resumes an interrupted training.")


def _weights(arguments: Sequence[str]) -> int:
    from chisep.api.weights import weight_cards
    from chisep.networks.weights import WeightsConfig

    config = _parse(WeightsConfig, "weights", arguments)
    cards = weight_cards(config)
    if config.json:
        print(json.dumps(cards, indent=2, ensure_ascii=False))
    elif config.card:
        from chisep.networks.model_card import model_card

        print(*(model_card(card) for card in cards.values()), sep="\n", end="")
    elif not cards:
        print("this version has no packaged weights; train some with `chisep train`")
    elif config.name:
        for card in cards.values():
            print_table(config.name, ("", ""), list(_flat(card)))
    else:
        rows = [
            (
                name,
                f"{', '.join(card['network']['inputs'])} → {', '.join(card['network']['outputs'])}",
                f"{card['parameters']:,}",
                f"{card['bytes'] / 1e6:.1f} MB",
                f"{card['training_data']['dataset']} ({', '.join(card['training_data']['train'])})",
                card["licence_of_data"],
                ", ".join(f"{key} {text}" for key, text in _flat(card["metrics"])),
                card["trust"],
            )
            for name, card in cards.items()
        ]
        columns = (
            "name",
            "from → to",
            "parameters",
            "size",
            "trained on",
            "licence of data",
            "metrics",
            "trust",
        )
        print_table("", columns, rows)
    return 0


def _flat(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows of a nested mapping, the keys joined by dots."""
    for key, value in card.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            values = value if isinstance(value, list) else [value]
            yield prefix + key, ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _simulate(arguments: Sequence[str]) -> int:
    from chisep.pipeline.labelled_dataset import LabelledConfig, simulate_labelled

    config = _parse(LabelledConfig, "simulate", arguments)
    with sigterm_as_interrupt(), progress_bar() as show:
        subjects = simulate_labelled(config, show)
    print(*(f"{config.out}: {subject}" for subject in subjects), sep="\n")
    return 0


def _import(arguments: Sequence[str]) -> int:
    from chisep.io.ingest.nifti import ImportConfig, import_session

    print(*import_session(_parse(ImportConfig, "import", arguments)), sep="\n")
    return 0


def _dicom(arguments: Sequence[str]) -> int:
    from chisep.io.ingest.dicom import DicomConfig, convert

    print(*convert(_parse(DicomConfig, "dicom", arguments)), sep="\n")
    return 0


def _bids_check(arguments: Sequence[str]) -> int:
    from chisep.pipeline.check import BidsCheckConfig, bids_check

    config = _parse(BidsCheckConfig, "bids-check", arguments)
    checks = bids_check(config)
    if config.json:
        print(json.dumps([check.as_dict() for check in checks], indent=2, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(check.lines()) for check in checks))
    return 0 if all(check.ok for check in checks) else 1


def _regions(arguments: Sequence[str]) -> int:
    from chisep.api.regions import RegionsConfig, regions

    print(*regions(_parse(RegionsConfig, "regions", arguments)), sep="\n")
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    from chisep.api.evaluate import EvaluateConfig, evaluate

    print(json.dumps(evaluate(_parse(EvaluateConfig, "evaluate", arguments)), indent=2))
    return 0


def _methods(arguments: Sequence[str]) -> int:
    from chisep.methods import METHODS, MethodsConfig

    config = _parse(MethodsConfig, "methods", arguments)
    rows = [method.row() for method in METHODS.values()]
    if config.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    print_table("", list(rows[0]), [list(row.values()) for row in rows])
    return 0


def _qsm_ci(arguments: Sequence[str]) -> int:
    from chisep.api.qsm_ci import QsmCiConfig, qsm_ci

    print(*qsm_ci(_parse(QsmCiConfig, "qsm-ci", arguments)), sep="\n")
    return 0


def _demo(arguments: Sequence[str]) -> int:
    from chisep.demo import DemoConfig, demo

    config = _parse(DemoConfig, "demo", arguments)
    with progress_bar() as show:
        result = demo(config, show)
    print_table("Against the ground truth (digital phantom)", result.columns, result.rows)
    print(f"report: {result.report}\ncomparison: {result.comparison}")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    from chisep.doctor import DoctorConfig, doctor

    config = _parse(DoctorConfig, "doctor", arguments)
    with progress_bar() as show:
        findings = doctor(config, show)
    if config.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2, ensure_ascii=False))
    else:
        print_table("", ("check", "result", "found", "what to do"), [finding.row() for finding in findings])
    return 1 if any(finding.level == "fault" for finding in findings) else 0


def _completion(arguments: Sequence[str]) -> int:
    from chisep.cli.completion import CompletionConfig, completion_script

    config = _parse(CompletionConfig, "completion", arguments)
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    print(completion_script(config.shell, summaries), end="")
    return 0


def _reproduce(arguments: Sequence[str]) -> int:
    from chisep.experiments import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: chisep reproduce EXPERIMENT OUT …\n\nexperiments:")
        for name, experiment in EXPERIMENTS.items():
            print(f"  {name}  {experiment.summary}")
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name not in EXPERIMENTS:
        return _fail(f"no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}", status=2)
    experiment = EXPERIMENTS[name]
    config_type, function = experiment.load()
    config = parse(config_type, f"reproduce {name}", arguments[1:], experiment.summary)
    with progress_bar() as show:
        written = function(config, show)
    print(*written, sep="\n")
    return 0


COMMANDS = {
    "run": Command("process a BIDS dataset: source maps and a report for every session", _run),
    "explain": Command("trace a file back to the raw images; write the methods section of a paper", _explain),
    "separate": Command("separate χ_pos and χ_neg from a field map and a map of R2' or R2*", _separate),
    "qsm": Command("compute a susceptibility map from a field map", _qsm),
    "orientations": Command(
        "process scans in several head orientations: COSMOS, and labels for training", _orientations
    ),
    "cosmos": Command("compute a susceptibility map from fields of several head orientations", _cosmos),
    "regions": Command("read values of maps in regions, also of maps that were made elsewhere", _regions),
    "simulate": Command("simulate a BIDS dataset of digital phantoms with known sources", _simulate),
    "train": Command("train a network on labelled maps, your own or simulated ones", _train),
    "weights": Command("list the packaged weights, or describe some weights", _weights),
    "dicom": Command("convert the DICOM files of a session to BIDS, with dcm2niix", _dicom),
    "import": Command("add single NIfTI files to a BIDS dataset", _import),
    "bids-check": Command("list for every session what will run, is missing, or is assumed", _bids_check),
    "evaluate": Command("evaluate source maps against the ground truth, as JSON", _evaluate),
    "methods": Command("list the methods", _methods),
    "qsm-ci": Command("run with the file names of the public benchmark QSM-CI", _qsm_ci),
    "reproduce": Command("reproduce the tables and figures of an experiment", _reproduce),
    "doctor": Command("check the installation and this machine, with a self-test", _doctor),
    "completion": Command("print the completion script of a shell (bash, zsh)", _completion),
    "demo": Command("simulate a scan, process it, and compare all methods", _demo),
}
