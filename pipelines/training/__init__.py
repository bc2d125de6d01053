"""One trainer for every task.

A task (``task.Task``) says what it trains, what is frozen, what is encoded once and kept, how a batch becomes losses,
how it is validated and what it exports. ``trainer.Trainer`` owns the rest: configuration, cache, order of the data,
precision, several processes (Hugging Face Accelerate), checkpoints, stop signals, the log.

Order of reading: ``task``, ``trainer``, then what the trainer uses: ``preflight`` (checks before step 0), ``order`` and
``loader`` (the data, as a function of the step), ``cache``, ``checkpoints``, ``optimisation``, ``journal``, ``export``.
``lora_task`` is the first task, with ``lora`` (adapters, file format), ``image_folder`` (data, sizes), ``diffusion``
(loss) and ``sampling`` (validation pictures).
"""

from .checkpoints import Checkpoint, CheckpointError, CheckpointStore
from .export import export_checkpoint
from .preflight import TrainingError
from .settings import settings_class
from .task import BatchRandom, Example, Scan, Source, Task, Validation
from .trainer import Trainer

__all__ = [
    "BatchRandom", "Checkpoint", "CheckpointError", "CheckpointStore", "Example", "Scan", "Source", "Task", "Trainer",
    "TrainingError", "Validation", "export_checkpoint", "settings_class",
]  # fmt: skip
