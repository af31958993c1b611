"""Accelerator, precision and strategy of a training on this machine."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
import torch

from chisep.errors import InputError
from chisep.networks import inference

FixedPrecision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
Precision = Literal["auto"] | FixedPrecision


def choose_accelerator(accelerator: str) -> str:
    """Choose cpu or gpu.

    Raises
    ------
    InputError
        If a GPU is asked for and torch can use none.
    """
    if torch.cuda.is_available() or accelerator == "cpu":
        return accelerator
    if accelerator == "gpu":
        raise InputError(
            "--accelerator",
            found="gpu, and none that this torch can use",
            expected="cpu or auto",
            fix="Install a torch build for your GPU.",
        )
    return "cpu" if accelerator == "auto" else accelerator


def choose_precision(precision: Precision, accelerator: str) -> FixedPrecision:
    """Choose the precision of convolutions; for auto, the fastest that the hardware has."""
    if precision != "auto":
        return precision
    if accelerator == "cpu":
        return "bf16-mixed" if inference.has_fast_bfloat16("cpu") else "32-true"
    return "bf16-mixed" if inference.has_fast_bfloat16("cuda") else "16-mixed"


def choose_strategy(accelerator: str, devices: int) -> Any:  # noqa: ANN401
    """Choose Lightning's strategy: data-parallel for several devices."""
    if devices == 1:
        return "auto"
    return pl.strategies.DDPStrategy(process_group_backend="gloo") if accelerator == "cpu" else "ddp"
