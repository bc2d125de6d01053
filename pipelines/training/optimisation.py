"""The optimiser, its learning rate as a function of the step, and the moving average of the weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from ..optional import need
from .settings import OptimizerSettings


def make_optimizer(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW; fused on a GPU; with 8-bit state where that was asked for. ``ImportError`` if bitsandbytes is missing."""
    options = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        return need("bitsandbytes", "bitsandbytes").optim.AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=parameters[0].is_cuda, **options)


def learning_rate(settings: OptimizerSettings, steps: int) -> Callable[[int], float]:
    """The learning rate of step s, from s alone, so that nothing about it has to be saved (diffusers' schedules)."""
    # get_scheduler wants an optimiser, and sets its rate: not ours.
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    name = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
    scheduler = get_scheduler(name, dummy, num_warmup_steps=settings.warmup_steps, num_training_steps=steps)
    factor = scheduler.lr_lambdas[0]
    return lambda step: settings.learning_rate * factor(step)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_ema(parameters: list[nn.Parameter], decay: float) -> EMAModel | None:
    """diffusers' moving average, with its warm-up of the decay; None if ``decay`` is 0."""
    return EMAModel(parameters, decay=decay) if decay > 0 else None


def is_finite(value: torch.Tensor | float) -> bool:
    return math.isfinite(float(value))


@contextmanager
def averaged_weights(ema: EMAModel, trained: dict[str, nn.Parameter]) -> Iterator[None]:
    """Block in which the parameters hold their moving averages."""
    ema.store(trained.values())
    ema.copy_to(trained.values())
    try:
        yield
    finally:
        ema.restore(trained.values())
