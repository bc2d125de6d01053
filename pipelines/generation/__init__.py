"""Makes data sets: one engine for all recipes, on one machine, on several, or on a Ray cluster.

A recipe turns a number and a seed into the files of one item. A data set is a folder of shards, each a tar file in
WebDataset layout with a JSON sidecar that is written last: a shard is finished when its sidecar is there and fits.
Whatever an item holds follows from the settings and its seed alone, so on like hardware shards come out byte for byte
the same however many workers make them and however often they are killed; leases only keep two workers from doing the
same work.

Read in this order: ``recipe`` (what a recipe is), ``dataset`` with ``sidecar`` (the folder and its work list),
``shard`` (from items to a tar file), ``lease``, ``worker`` (makes shards until none is left), ``engine`` with ``local``
and ``on_ray`` (who starts workers), ``survey`` (how far it is), and on finished data ``reader``, ``verify``,
``export``.
"""

from .dataset import Dataset, DatasetError, DatasetSettings, open_dataset, prepare_dataset
from .engine import RunSettings, generate
from .export import export_folder
from .reader import DatasetReader
from .recipe import Absent, Content, Recipe, Rejected
from .survey import Survey
from .verify import verify_dataset
from .worker import Job, WorkerScript, worker_main

__all__ = [
    "Absent",
    "Content",
    "Dataset",
    "DatasetError",
    "DatasetReader",
    "DatasetSettings",
    "Job",
    "Recipe",
    "Rejected",
    "RunSettings",
    "Survey",
    "WorkerScript",
    "export_folder",
    "generate",
    "open_dataset",
    "prepare_dataset",
    "verify_dataset",
    "worker_main",
]
