"""The node that says where external weights are, and gets them when told to."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..pipelines.weights.manifest import State, WeightFile, destination, find, named, select, shipped, state
from .convert import node_progress


class Weights(io.ComfyNode):
    """The path of an external weight file; downloads it when asked."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessWeights",
            display_name="Weights",
            category="Likeness/models",
            description="Where a model file that a method of this pack can use is, or belongs, with its licence. "
            "Downloads it only if you switch that on.",
            search_aliases=["download model", "checkpoint path", "model manager", "licence"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "name", options=[weight.name for weight in shipped()],
                    tooltip="The file, as weights_manifest.json and `nodes/weights_cli.py list` call it.",
                ),
                io.Boolean.Input(
                    "download", default=False,
                    tooltip="Get the file if it is missing or damaged. Off: nothing goes over the net.",
                ),
                io.Boolean.Input(
                    "verify", default=False, optional=True, advanced=True,
                    tooltip="Read the whole file and compare its checksum, where one is known.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file; of an archive, its first member."),
                io.String.Output(display_name="status", tooltip="Licence, size and state, as text."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, name, download, verify=False):
        if name is None:  # comes over a link
            return float("nan")
        return weights_in_place(name)

    @classmethod
    def execute(cls, name, download, verify=False) -> io.NodeOutput:
        weight = named(name)
        folders = models_folders(weight.folder)
        found = state(weight, folders, checksums=verify)
        if found in (State.MISSING, State.DAMAGED):
            if not download:
                raise ValueError(f"Weights: {name} is {found.value}. Switch download on. {_by_hand(weight)}")
            _download(weight)
            found = state(weight, folders, checksums=verify)
        path, text = find(weight, folders)[0], status(weight, found)
        return io.NodeOutput(str(path), text, ui=ui.PreviewText(f"{path}\n{text}"))


def models_folders(folder: str) -> list[Path]:
    """ComfyUI's models folder, and those that its extra paths add for this kind of model (``folder`` below them)."""
    kind = folder.partition("/")[0]
    extra = folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else []
    parents = (Path(path).parent for path in extra if Path(path).name == kind)
    return list(dict.fromkeys([Path(folder_paths.models_dir), *parents]))


def weights_in_place(*names: str) -> str:
    """The files of these weights, or groups of them, that are in place: other text once one comes, goes or changes.

    For ``fingerprint_inputs`` of nodes that look for weights themselves: what they did without counts no longer then.
    """
    found = {weight.name: find(weight, models_folders(weight.folder)) or [] for weight in select(shipped(), names)}
    return str({name: [(str(path), path.stat().st_mtime_ns) for path in paths] for name, paths in found.items()})


def status(weight: WeightFile, found: State) -> str:
    """What a person should know of it, in lines."""
    uses = {True: "commercial use allowed", False: "no commercial use", None: "commercial use unclear"}
    return f"{weight.name}: {found.value}\n{weight.purpose}\n{weight.licence}; {uses[weight.commercial_use]}"


def _by_hand(weight: WeightFile) -> str:
    from ..pipelines.weights.download import by_hand

    return by_hand(weight, destination(weight, Path(folder_paths.models_dir)))


def _download(weight: WeightFile) -> None:
    from ..pipelines.weights.download import download

    progress = node_progress()
    try:
        download(weight, Path(folder_paths.models_dir), lambda done, total: progress(done, total or done))
    except (ValueError, OSError) as error:
        raise ValueError(f"Weights: {error}") from error
