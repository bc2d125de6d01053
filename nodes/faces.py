"""Nodes for faces: find them, cut them out, put them back, and keep who somebody is."""

from itertools import count
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..pipelines.faces import (
    BACKENDS,
    CHOICES,
    ORDERS,
    BackendSettings,
    CropSettings,
    crop_faces,
    find_faces,
    identity_of,
    load_backend,
    load_identity,
    paste_faces,
    save_identity,
)
from ..pipelines.faces import choose as choose_faces
from ..pipelines.faces.backend import DEVICES, PACKS, backend_class
from ..pipelines.faces.draw import box_mask, draw_faces
from ..pipelines.faces.face import CROP_MODES
from ..pipelines.faces.interchange import faces_from_boxes, faces_from_landmarks
from .convert import compute_device, named_errors, node_progress, to_comfy, to_pipeline
from .weights import models_folders

FacesType, IdentityType = io.Custom("LIKENESS_FACES"), io.Custom("LIKENESS_IDENTITY")
CHOOSE_TIP = (
    "all: every face. by index: the face of this number in each picture. most similar: in each picture the face "
    "nearest to the reference identity."
)
INDEX_TIP = "Number of the face in each picture, counted from 0 in the order of Detect Faces; -1 is the last."
REFERENCE_TIP = "Whom the most similar face is to be similar to; made by the same backend."


class DetectFaces(io.ComfyNode):
    """Finds faces, or takes those that other nodes found, and embeds them."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessDetectFaces",
            display_name="Detect Faces",
            category="Likeness/faces",
            description="Finds the faces in a picture or a batch: boxes, five landmarks, and an embedding each, which "
            "says who it is. Or takes the faces that ComfyUI's own nodes found, and embeds those.",
            search_aliases=["face detection", "insightface", "antelopev2", "YuNet", "face embedding", "landmarks"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture, or a batch; any size."),
                io.Combo.Input(
                    "backend", options=list(BACKENDS), default="embedded",
                    tooltip="embedded: no download; rendered portraits, and frontal faces in photos with landmarks "
                    "estimated. opencv: YuNet and SFace, "
                    "free for any use. insightface: best, its models are for non-commercial research only.",
                ),
                io.Combo.Input("model_pack", options=list(PACKS), tooltip="Which pack of InsightFace."),
                io.Float.Input("min_score", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="How sure the detector must be. Backends count differently. Faces that "
                               "other nodes found are all kept."),
                io.Combo.Input("order", options=list(ORDERS), tooltip="How the faces of a picture are numbered."),
                io.Boolean.Input("embeddings", default=True,
                                 tooltip="Also embed the faces, which identities and similarity need."),
                io.Combo.Input("device", options=list(DEVICES), advanced=True,
                               tooltip="What the backend runs on; auto takes CUDA where the backend can use it."),
                io.BoundingBox.Input("bboxes", optional=True, force_input=True,
                                     tooltip="Boxes of faces from other nodes; nothing is detected then."),
                io.Custom("FACE_LANDMARKS").Input(
                    "face_landmarks", optional=True,
                    tooltip="Faces from Detect Face Landmarks (MediaPipe); nothing is detected then.",
                ),
            ],
            outputs=[
                FacesType.Output(display_name="faces", tooltip="The faces of every picture."),
                io.Image.Output(display_name="drawn", tooltip="The pictures with boxes, numbers, scores and points; "
                                "yellow points are estimated from the box."),
                io.String.Output(display_name="table", tooltip="Every face as a line of text."),
                io.Int.Output(display_name="count", tooltip="How many faces there are in all pictures together."),
                io.Mask.Output(display_name="boxes", tooltip="1 in the boxes of faces, 0 elsewhere."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image, backend, model_pack, min_score, order, embeddings, device="auto", bboxes=None, face_landmarks=None
    ) -> io.NodeOutput:
        pictures = to_pipeline(image)
        with named_errors("Detect Faces"):
            given = given_faces(pictures, bboxes, face_landmarks)
            notes, tool = (), None
            if given is None or embeddings:
                settings = BackendSettings(models_folder(backend, model_pack), model_pack, usable(device))
                tool = load_backend(backend, settings)
                notes = tool.notes
            least = min_score if given is None else 0.0
            faces = find_faces(tool, pictures, least, order, embeddings, given, node_progress())
        table = "\n".join([*notes, faces.table()])
        drawn, boxes = to_comfy(draw_faces(pictures, faces)), to_comfy(box_mask(faces)[:, None])[..., 0]
        return io.NodeOutput(faces, drawn, table, faces.count, boxes, ui=ui.PreviewText(table))


def models_folder(backend: str, pack: str) -> Path:
    """The models folder, ComfyUI's or one that its extra paths add, that holds the files of this backend."""
    folders = models_folders("insightface" if backend == "insightface" else "likeness")
    kind = backend_class(backend)
    return next((folder for folder in folders if kind.has_files(folder, pack)), folders[0])


def usable(device: str) -> str:
    """The device for a backend: "auto" is the CPU where ComfyUI itself keeps off the GPU, as with --cpu."""
    return "cpu" if device == "auto" and compute_device().type != "cuda" else device


def given_faces(pictures, bboxes, face_landmarks):
    """The faces that other nodes found, or None; ``ValueError`` where two did."""
    if bboxes is not None and face_landmarks is not None:
        raise ValueError("bboxes and face_landmarks are both connected: connect one of them (landmarks say more).")
    if bboxes is not None:
        return faces_from_boxes(bboxes, len(pictures))
    if face_landmarks is not None:
        return faces_from_landmarks(face_landmarks, tuple(pictures.shape[-2:]), len(pictures))
    return None


class FaceCrop(io.ComfyNode):
    """Faces as pictures of their own."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessFaceCrop",
            display_name="Face Crop",
            category="Likeness/faces",
            description="Cuts faces out, all of one size: turned upright and aligned by their landmarks, as face "
            "embedders want them, or as their box. Paste Face Back puts them back.",
            search_aliases=["align face", "crop face", "face alignment", "arcface 112"],
            inputs=[
                io.Image.Input("image", tooltip="The image that the faces were detected in."),
                FacesType.Input("faces", tooltip="From Detect Faces."),
                io.Int.Input("size", default=224, min=16, max=4096, step=8,
                             tooltip="Side of a crop in pixels. VAEs cut what is no multiple of 8, and the face would "
                             "come back too large."),
                io.Combo.Input("mode", options=list(CROP_MODES),
                               tooltip="aligned: turned and scaled until the landmarks fit. box: upright."),
                io.Float.Input("margin", default=0.0, min=0.0, max=4.0, step=0.05,
                               tooltip="What to add on every side, as a part of the side. Leave 0 for embedders."),
                io.Combo.Input("choose", options=list(CHOICES), tooltip=CHOOSE_TIP),
                io.Int.Input("index", default=0, min=-64, max=64, tooltip=INDEX_TIP),
                IdentityType.Input("reference", optional=True, tooltip=REFERENCE_TIP),
            ],
            outputs=[
                io.Image.Output(display_name="crops", tooltip="The crops, face by face, picture by picture."),
                io.Mask.Output(display_name="inside", tooltip="1 where a crop shows picture, 0 where the picture's "
                               "border was repeated."),
                FacesType.Output(display_name="faces", tooltip="The cropped faces, for Paste Face Back."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, faces, size, mode, margin, choose, index, reference=None) -> io.NodeOutput:
        with named_errors("Face Crop"):
            chosen = choose_faces(faces, choose, index, reference).cropped(CropSettings(size, mode, margin))
            crops, inside = crop_faces(to_pipeline(image), chosen, chosen.crop)
        return io.NodeOutput(to_comfy(crops), to_comfy(inside)[..., 0], chosen)


class PasteFaceBack(io.ComfyNode):
    """The way back of Face Crop."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessPasteFaceBack",
            display_name="Paste Face Back",
            category="Likeness/faces",
            description="Puts crops of Face Crop, edited meanwhile, back where they were cut out, turned and scaled "
            "as they were, with soft edges.",
            search_aliases=["uncrop face", "face composite", "stitch face", "inverse align"],
            inputs=[
                io.Image.Input("image", tooltip="The image that the crops were cut out of."),
                io.Image.Input("crops", tooltip="The crops, in the order of Face Crop; another size is fine."),
                FacesType.Input("faces", tooltip="The faces that Face Crop gives out."),
                io.Float.Input("softness", default=0.15, min=0.0, max=0.5, step=0.01,
                               tooltip="Over which part of its side a crop fades out towards its edges."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The image with the faces put back.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, crops, faces, softness) -> io.NodeOutput:
        with named_errors("Paste Face Back"):
            return io.NodeOutput(to_comfy(paste_faces(to_pipeline(image), to_pipeline(crops), faces, softness)))


class IdentityFromFaces(io.ComfyNode):
    """Who the faces show."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessIdentityFromFaces",
            display_name="Identity from Faces",
            category="Likeness/faces",
            description="Makes an identity of the embeddings of one face or of many pictures of one person; averaged "
            "it leaves less of the single picture's light and pose.",
            search_aliases=["face embedding", "id embedding", "average faces", "reference face"],
            inputs=[
                FacesType.Input("faces", tooltip="From Detect Faces, with embeddings."),
                io.Combo.Input("choose", options=list(CHOICES), default="by index", tooltip=CHOOSE_TIP),
                io.Int.Input("index", default=0, min=-64, max=64, tooltip=INDEX_TIP),
                io.Boolean.Input("average", default=True, tooltip="Make one embedding of all, the one in the middle."),
                FacesType.Input("more_faces", optional=True, tooltip="More faces of the same person, from another "
                                "Detect Faces with the same backend; chosen in the same way."),
                IdentityType.Input("reference", optional=True, tooltip=REFERENCE_TIP),
            ],
            outputs=[
                IdentityType.Output(display_name="identity", tooltip="The embeddings, and what made them."),
                io.String.Output(display_name="report", tooltip="How many faces went in and how alike they are."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, faces, choose, index, average, more_faces=None, reference=None) -> io.NodeOutput:
        with named_errors("Identity from Faces"):
            groups = [choose_faces(own, choose, index, reference) for own in (faces, more_faces) if own is not None]
            identity, *others = [
                identity_of([face for _, face in own.flat()], own.embedder, own.licence) for own in groups
            ]
            for other in others:
                identity = identity.joined(other)
            report = identity.report()
            return io.NodeOutput(identity.averaged() if average else identity, report)


class SaveIdentity(io.ComfyNode):
    """An identity as a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessSaveIdentity",
            display_name="Save Identity",
            category="Likeness/faces",
            description="Writes an identity to ComfyUI's output folder, as a safetensors file that says which embedder "
            "made it and under which licence. A file that is there already stays.",
            search_aliases=["save face", "save embedding", "face model"],
            is_output_node=True,
            inputs=[
                IdentityType.Input("identity", tooltip="From Identity from Faces."),
                io.String.Input("filename_prefix", default="identities/somebody",
                                tooltip="Folder and beginning of the name below the output folder; a number is added."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Where it was written, below the output folder.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, identity, filename_prefix) -> io.NodeOutput:
        root = folder_paths.get_output_directory()
        prefix = filename_prefix.rstrip("/\\")  # with these ComfyUI counts no files
        if not prefix.strip() or not below(root, prefix):
            raise ValueError(
                f"Save Identity: filename_prefix is {filename_prefix!r}: name a place below ComfyUI's output folder, "
                "such as identities/somebody."
            )
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
        paths = (Path(folder) / f"{name}_{number:05}_.safetensors" for number in count(counter))
        path = next(path for path in paths if not path.exists())
        try:
            save_identity(identity, path)
        except FileExistsError as error:
            raise ValueError(f"Save Identity: {error}") from error
        file = (Path(subfolder) / path.name).as_posix()
        return io.NodeOutput(file, ui=ui.PreviewText(file))


def below(root: str, name: str) -> bool:
    """True if ``name`` is a place inside the folder ``root`` once every ``..`` and link is followed."""
    return (Path(root) / name).resolve().is_relative_to(Path(root).resolve())


# Folders named so, below ComfyUI's own, are where identities are looked for.
IDENTITY_FOLDER = "identities"


def identity_files() -> dict[str, Path]:
    """Name in the menu to file, of every identity in the folders of ComfyUI."""
    roots = {
        "output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory(),
        "models": folder_paths.models_dir,
    }  # fmt: skip
    found = {}
    for label, root in roots.items():
        files = sorted((Path(root) / IDENTITY_FOLDER).rglob("*.safetensors"))
        inside = [file for file in files if file.resolve().is_relative_to(Path(root).resolve())]
        found |= {f"{label}/{file.relative_to(root).as_posix()}": file for file in inside}
    return found


class LoadIdentity(io.ComfyNode):
    """An identity from a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessLoadIdentity",
            display_name="Load Identity",
            category="Likeness/faces",
            description="Reads an identity that Save Identity wrote, from the folder identities of ComfyUI's output, "
            "input or models.",
            search_aliases=["load face", "load embedding", "face model"],
            inputs=[
                io.Combo.Input("file", options=list(identity_files()),
                               tooltip="Files below the folder identities of output, input and models."),
            ],
            outputs=[
                IdentityType.Output(display_name="identity", tooltip="The embeddings, and what made them."),
                io.String.Output(display_name="report", tooltip="How many embeddings, of which embedder and licence."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        with named_errors("Load Identity"):
            identity = load_identity(known_file(file))
            return io.NodeOutput(identity, identity.report())

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        try:
            if file is not None:  # None: comes over a link
                known_file(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file):
        path = identity_files().get(file)
        return path and (path.stat().st_mtime_ns, path.stat().st_size)


def known_file(name: str) -> Path:
    """The file of this name in the menu; ``ValueError`` for any other, so that no path leads elsewhere."""
    files = identity_files()
    if name not in files:
        raise ValueError(
            f"there is no identity {name!r}: put it into the folder {IDENTITY_FOLDER} of ComfyUI's output, input or "
            f"models folder. Known: {', '.join(files) or 'none'}."
        )
    return files[name]
