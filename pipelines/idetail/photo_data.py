"""IDetail's training data from photos: every person redrawn by InstantID under 67 prompts (paper, section 3).

7 of the prompts are targets, 60 inputs; outputs of one person fit each other better than the photo, so pairs are made
of outputs (``takes.pairs_of``). The photo itself comes with them for the paper's failing baseline.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..configuration import option
from ..faces import Face, FaceBackend, identity_of
from ..generation.photos import digest_of, find_photos
from ..generation.recipe import Absent, Rejected
from ..images import load_image
from ..masks import RcnnSettings, face_masks, foreground_masks, ignore_below, load_mask_rcnn, rcnn_masks
from ..optional import need
from .instantid import InstantId, InstantIdSettings, Subject, largest_face, subject_of
from .instantid_models import load_face_backend, load_instantid, needed_files, weight_file
from .prompts import INPUT_PROMPTS, TARGET_PROMPTS
from .restoration import METHODS, RestorationSettings, restore_detail
from .takes import INPUT, ORIGINAL, TARGET

PROMPTS = tuple((TARGET, prompt) for prompt in TARGET_PROMPTS) + tuple((INPUT, prompt) for prompt in INPUT_PROMPTS)
MASKS = ("mask r-cnn", "grabcut")
REGIONS = ("face", "foreground")
RCNN = "mask-rcnn-v2/detector"
# Networks have their own settings; the rest of them is passed on by name.
DRAWN = InstantIdSettings()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoSettings:
    """Photos of people, and how they are redrawn."""

    photos: Path = option(help="folder of photos, one person each, searched with its subfolders")
    models: Path = option(help="ComfyUI's models folder, or one like it; weights_cli.py download fills it")
    model: Path | None = option(None, "SDXL checkpoint, or its diffusers folder (default: SDXL's base in --models)")
    tokenizer: Path | None = option(None, "folder with vocab.json and merges.txt, for single-file checkpoints "
                                    "(default: that of a ComfyUI, where one is found)")  # fmt: skip
    direct: bool = option(False, "add each photo itself, to train from photo to output: the baseline that fails")
    min_similarity: float = option(0.3, "cosine of ArcFace embeddings between photo and output below which an output "
                                   "is rejected", minimum=-1, maximum=1)  # fmt: skip
    who: str = option("person", "what the generator is told to draw where the caption has the placeholder")
    masks: str = option(MASKS[0], "how the foreground is found; grabcut needs no weights", choices=MASKS)
    restore: str = option(METHODS[0], "how outputs get the photo's fine detail back", choices=(*METHODS, "none"))
    restore_region: str = option(REGIONS[0], "where they get it", choices=REGIONS)
    restore_strength: float = option(1.0, "how much of it", minimum=0, maximum=2)
    restore_size: float = option(2.0, "size of the largest detail in pixels", minimum=0.5, maximum=64)
    identity_scale: float = option(DRAWN.identity_scale, "weight of IdentityNet", minimum=0, maximum=2)
    adapter_scale: float = option(DRAWN.adapter_scale, "weight of the image tokens in the UNet", minimum=0, maximum=2)
    canny_scale: float = option(DRAWN.canny_scale, "weight of the photo's edges; 0: InstantID alone", minimum=0,
                                maximum=2)  # fmt: skip
    canny_low: float = option(DRAWN.canny_low, "lower threshold of the edges", minimum=0)
    canny_high: float = option(DRAWN.canny_high, "upper threshold of the edges", minimum=0)
    steps: int = option(DRAWN.steps, "sampling steps", minimum=1)
    guidance: float = option(DRAWN.guidance, "classifier-free guidance", minimum=1)
    negative_prompt: str = option(DRAWN.negative_prompt, "what outputs should not show")
    max_side: int = option(DRAWN.max_side, "longer side of the pictures; both are multiples of 64", minimum=64)

    def drawing(self) -> InstantIdSettings:
        """The generator's part of these settings."""
        names = ("identity_scale", "adapter_scale", "canny_scale", "canny_low", "canny_high", "steps", "guidance",
                 "negative_prompt", "max_side")  # fmt: skip
        return InstantIdSettings(**{name: getattr(self, name) for name in names})


class IdetailPhotos:
    """``png`` is an output, ``mask.png`` its foreground, ``txt`` the prompt with its placeholder, ``json`` the truth.

    Item i shows person i // takes, of the photos in which a face is found, in their order, under prompt i % takes; with
    ``direct`` the last take is the photo itself. Items beyond the last person are absent. The json holds what
    ``takes.Take`` reads, and ``photo``, ``faces`` (how many the photo shows; the largest counts), ``similarity`` to the
    photo, ``prompt_drawn`` and ``licence``.
    """

    name = "idetail"
    summary = "photos redrawn by InstantID under IDetail's 67 prompts; needs photos and SDXL, InstantID, antelopev2"
    version = 1
    Settings = PhotoSettings

    def __init__(self, settings: PhotoSettings, device: str = "cpu"):
        """``ValueError`` or ``ImportError`` where photos, weights or torchvision are missing; loads nothing yet."""
        self.settings, self.device, self.drawing = settings, device, settings.drawing()
        self._photos = find_photos(settings.photos)
        self.takes = len(PROMPTS) + settings.direct
        self.count = len(self._photos) * self.takes
        files = needed_files(settings.models, settings.model, self.drawing, settings.tokenizer)
        if settings.masks == MASKS[0]:
            files.append(weight_file(RCNN, settings.models))
            need("torchvision.models.detection", "torchvision")  # before hours of drawing, not after
        self.inputs = digest_of(settings.photos, [*self._photos, *files])
        self._shown: list[Path] = []  # photos with a face, as far as looked for
        self._looked = 0
        self._current: tuple[int, Subject, Tensor | None] | None = None

    def parameters(self, item: int, seed: int) -> dict:
        """Which person and prompt; another attempt differs by its noise alone."""
        person, take = divmod(item, self.takes)
        role, prompt = PROMPTS[take] if take < len(PROMPTS) else (ORIGINAL, None)
        return {"person": person, "take": take, "role": role, "prompt": prompt.name if prompt else ""}

    def make(self, parameters: dict, seed: int) -> dict:
        """Draw one output; ``Rejected`` without a face in it, or one that is not similar enough."""
        subject, region = self._subject_of(parameters["person"])
        truth = {name: parameters[name] for name in ("person", "role", "prompt")}
        truth |= {"photo": self._name(parameters["person"]), "faces": subject.faces, "licence": self._backend.licence}
        if parameters["role"] == ORIGINAL:
            return self._item(subject.photo, subject.face, "a photo of a <c>", {**truth, "similarity": 1.0})
        prompt = PROMPTS[parameters["take"]][1]
        drawn = prompt.caption(self.settings.who)
        picture = self._drawn(subject, region, drawn, seed)
        face, similarity = self._judged(subject, picture)
        truth |= {"similarity": round(similarity, 4), "prompt_drawn": drawn}
        return self._item(picture, face, prompt.caption(), truth)

    # ---- people

    def _subject_of(self, person: int) -> tuple[Subject, Tensor | None]:
        """The person's photo and face, and where detail is restored; photos without a face are passed over.

        Raises ``Absent`` where too few show one: the number of people is known only when all photos were looked at.
        """
        if self._current is None or self._current[0] != person:
            while len(self._shown) <= person:
                self._look_at_next()
            subject = self._read(self._shown[person])
            if subject is None:
                raise Rejected("photo cannot be read any more (--photos)")
            self._current = person, subject, self._region(subject)
        return self._current[1:]

    def _look_at_next(self) -> None:
        if self._looked == len(self._photos):
            raise Absent("fewer photos show a face than there are photos (--photos)")
        photo = self._photos[self._looked]
        self._looked += 1
        if self._read(photo) is not None:
            self._shown.append(photo)

    def _read(self, photo: Path) -> Subject | None:
        backend = self._backend
        try:
            found = subject_of(load_image(photo), backend, self.drawing)
        except ValueError as error:
            logger.warning("%s is passed over: %s", photo, error)
            return None
        if found is None:
            logger.warning("%s is passed over: no face is found in it.", photo)
        return found

    def _name(self, person: int) -> str:
        return self._shown[person].relative_to(self.settings.photos).as_posix()

    # ---- pictures

    def _drawn(self, subject: Subject, region: Tensor | None, prompt: str, seed: int) -> Tensor:
        picture = self._generator.draw(subject, prompt, torch.Generator().manual_seed(seed))
        if region is not None:
            chosen = self.settings
            how = RestorationSettings(chosen.restore, chosen.restore_strength, chosen.restore_size)
            picture = restore_detail(picture.to(self.device), subject.photo, region, how).cpu()
        return (picture * 255).round() / 255  # what the PNG will show, so that scores are those of the files

    def _judged(self, subject: Subject, picture: Tensor) -> tuple[Face, float]:
        """The face in the output, and its cosine with the photo's."""
        face, _ = largest_face(picture, self._backend)
        if face is None:
            raise Rejected("no face in the output")
        person = identity_of([subject.face], self._backend.embedder)
        similarity = person.similarity(face.embedding, self._backend.embedder)
        if similarity < self.settings.min_similarity:
            raise Rejected("face of the output not similar enough (--min-similarity)")
        return face, similarity

    def _item(self, picture: Tensor, face: Face, words: str, truth: dict) -> dict:
        return {"png": picture[0], "mask.png": self._foreground(picture, face)[0], "txt": words, "json": truth}

    def _region(self, subject: Subject) -> Tensor | None:
        """Where the photo's detail is restored: [1, 1, H, W], None where that is off."""
        face = subject.face
        if self.settings.restore == "none":
            return None
        if self.settings.restore_region == REGIONS[0]:
            return face_masks(subject.photo, [torch.tensor([face.box])], [[face.with_landmarks().landmarks]])
        return self._foreground(subject.photo, face)

    def _foreground(self, picture: Tensor, face: Face) -> Tensor:
        if self.settings.masks == MASKS[0]:
            return rcnn_masks(self._people, picture.to(self.device)).cpu()
        return foreground_masks(picture, [torch.tensor([face.box])])

    # ---- networks, loaded when they are first needed

    @cached_property
    def _backend(self) -> FaceBackend:
        return load_face_backend(self.settings.models, self.device)

    @cached_property
    def _generator(self) -> InstantId:
        chosen = self.settings
        return load_instantid(chosen.models, self.drawing, self.device, chosen.model, chosen.tokenizer)

    @cached_property
    def _people(self):
        network = load_mask_rcnn(weight_file(RCNN, self.settings.models))
        return ignore_below(network, RcnnSettings().minimum_score).to(self.device)
