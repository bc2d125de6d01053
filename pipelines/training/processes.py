"""One run over several processes: Hugging Face Accelerate, and what keeps them from waiting for each other forever."""

from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from torch import Tensor

from ..stop import Stopped
from .preflight import TrainingError
from .settings import RunSettings, mixed_precision

# While one process encodes, validates or saves, the others wait; the default of ten minutes would end the run.
PATIENCE = timedelta(days=2)


def start_accelerator(run: RunSettings) -> Accelerator:
    """Accelerate for this run. Raises ``TrainingError`` where the device cannot do the precision."""
    if run.precision == "fp16" and not torch.accelerator.is_available():
        raise TrainingError("fp16 needs a GPU: use --precision bf16 or fp32 on a CPU.")
    if run.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise TrainingError("this GPU only imitates bf16, far more slowly: use --precision fp16 or fp32.")
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=mixed_precision(run.precision), kwargs_handlers=[patience])
    # The trainer divides by the number of micro-batches itself; a launcher's variable must not do it again.
    accelerator.gradient_accumulation_steps = 1
    return accelerator


class Processes:
    """The processes of a run, seen from one of them."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def share(self, items: list) -> list:
        """This process's part of a list that is the same in all."""
        return items[self.accelerator.process_index :: self.accelerator.num_processes]

    def all_of(self, items: Iterable) -> list:
        """The items of all processes, in the same order in each."""
        return gather_object(list(items))

    def average(self, values: dict[str, Tensor | float]) -> dict[str, float]:
        """Means over the processes."""
        stacked = torch.tensor([float(value) for value in values.values()], device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def together(self, work: Callable):
        """Run ``work`` here; if it was stopped or failed in any process, leave in all, so that none waits forever.

        Raises what it raised here; elsewhere ``Stopped``, or ``TrainingError`` after a failure.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # handed on below, once all processes know
            error = caught
        stopped = isinstance(error, Stopped)
        flags = torch.tensor([float(stopped), float(error is not None and not stopped)], device=self.accelerator.device)
        any_stopped, any_failed = self.accelerator.reduce(flags, "sum").tolist()
        if error is not None and not (stopped and any_failed):
            raise error
        if any_failed:
            raise TrainingError("another process of this run failed: see its message.")
        if any_stopped:
            raise Stopped("another process of this run")
        return result
