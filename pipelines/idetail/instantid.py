"""The photo generator: InstantID with a Canny ControlNet beside it (paper, section 3 and figure 2).

The largest face of a photo becomes an ArcFace embedding and 16 tokens. IdentityNet, a ControlNet on a drawing of five
face points, reads the tokens in place of text; the UNet reads the text, and beside it the tokens; a second ControlNet
on the photo's edges keeps pose and clothes.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler
from torch import Tensor

from ..faces import Face, FaceBackend, find_faces
from ..image_prompt import ImagePromptAdapter, image_prompt
from ..vae_pictures import VaePictures
from ..weights import BaseModel
from .controls import canny_edges, draw_points, fitted

# The only space that InstantID's projector knows; other embedders' numbers would be read as somebody else.
EMBEDDER = "insightface antelopev2"
MIN_SCORE = 0.5


@dataclass(frozen=True)
class InstantIdSettings:
    """How photos are redrawn; defaults of InstantID's public demo with several ControlNets (method notes, section 6).

    identity_scale, adapter_scale, canny_scale: weights of IdentityNet, of the image tokens in the UNet, of the edges;
        0 leaves a part out, and without edges it is the original InstantID.
    canny_low, canny_high: thresholds of the edges, in 8-bit grey levels.
    steps: of Euler's sampler; guidance: classifier-free, 1 is without; negative_prompt: ours.
    max_side: of the picture, in pixels; multiple: what both sides are multiples of.
    """

    identity_scale: float = 0.8
    adapter_scale: float = 0.8
    canny_scale: float = 0.3
    canny_low: float = 100.0
    canny_high: float = 200.0
    steps: int = 30
    guidance: float = 5.0
    negative_prompt: str = "lowres, low quality, blurry, deformed, text, watermark, frame"
    max_side: int = 1280
    multiple: int = 64

    def __post_init__(self):
        scales = (self.identity_scale, self.adapter_scale, self.canny_scale)
        if min(scales) < 0 or self.guidance < 1 or self.steps < 1:
            raise ValueError(f"scales are {scales}, guidance {self.guidance}, steps {self.steps}: at least 0, 1, 1.")
        if self.multiple < 1 or self.max_side < self.multiple:
            raise ValueError(f"max_side is {self.max_side}: use at least {max(self.multiple, 1)} pixels, the multiple.")
        if not 0 <= self.canny_low <= self.canny_high:
            raise ValueError(f"canny thresholds are {self.canny_low:g} and {self.canny_high:g}: the lower goes first.")


@dataclass(frozen=True, eq=False)
class Subject:
    """Whom to draw: the photo [1, 3, H, W] at the generator's size, its largest face, and how many faces it shows."""

    photo: Tensor
    face: Face
    faces: int

    @property
    def embedding(self) -> Tensor:
        """[1, D] as the embedder gave it: InstantID's projector was not trained on unit vectors."""
        return (self.face.embedding * self.face.length)[None]


def check_backend(backend: FaceBackend) -> None:
    """Raise ``ValueError`` for a backend whose embeddings InstantID cannot read."""
    if backend.embedder != EMBEDDER:
        raise ValueError(
            f"the face backend embeds as {backend.embedder!r}, InstantID reads {EMBEDDER!r} alone: load the backend "
            "insightface with its pack antelopev2."
        )


def largest_face(image: Tensor, backend: FaceBackend) -> tuple[Face | None, int]:
    """(the largest face of ``image`` [1, 3, H, W] with its embedding or None, how many there are)."""
    found = find_faces(backend, image, MIN_SCORE, embed=False).images[0]
    if not found:
        return None, 0
    return backend.embed(image, [[found[0]]])[0][0], len(found)


def subject_of(photo: Tensor, backend: FaceBackend, settings: InstantIdSettings) -> Subject | None:
    """The subject of ``photo`` [1, 3, H, W] in 0..1 of any size; None where no face is found."""
    check_backend(backend)
    small = fitted(photo, settings.max_side, settings.multiple)
    face, count = largest_face(small, backend)
    return None if face is None else Subject(small, face, count)


@dataclass(frozen=True, eq=False)
class Control:
    """One ControlNet, the picture [1, 3, H, W] it sees, what it reads in place of text (None: the text), its weight."""

    network: ControlNetModel
    picture: Tensor
    context: Tensor | None
    scale: float


class InstantId(VaePictures):
    """The networks, and how they draw. ``ValueError`` for a base that is no SDXL, and for parts that lack."""

    def __init__(
        self, base: BaseModel, adapter: ImagePromptAdapter, identity_net: ControlNetModel | None,
        canny_net: ControlNetModel | None, settings: InstantIdSettings = InstantIdSettings(),
    ):  # fmt: skip
        if base.family != "sdxl":
            raise ValueError(f"{base.name} is of the family {base.family}: InstantID needs an SDXL checkpoint.")
        if (settings.identity_scale and identity_net is None) or (settings.canny_scale and canny_net is None):
            raise ValueError("a ControlNet with a scale above 0 is not loaded: load it, or set its scale to 0.")
        self.base, self.vae, self.adapter, self.settings = base, base.vae, adapter, settings
        self.identity_net, self.canny_net = identity_net, canny_net
        self.scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)

    @torch.no_grad()
    def draw(
        self, subject: Subject, prompt: str, generator: torch.Generator,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:  # fmt: skip
        """The subject under ``prompt``: [1, 3, H, W] in 0..1, the size of its photo.

        generator: on the CPU, so that every device gets the same noise. ``on_step(done, total)`` may raise to stop.
        """
        settings, unet, size = self.settings, self.base.unet, tuple(subject.photo.shape[-2:])
        guided = settings.guidance != 1
        tokens = self.adapter.tokens(subject.embedding, guided)
        text = self._text(prompt, guided, size)
        controls = self._controls(subject, tokens)
        self.scheduler.set_timesteps(settings.steps, device=unet.device)
        shape = (1, unet.config.in_channels, size[0] // self.vae_cell, size[1] // self.vae_cell)
        latent = torch.randn(shape, generator=generator).to(unet.device) * self.scheduler.init_noise_sigma
        adapted = settings.adapter_scale > 0
        scope = image_prompt(unet, self.adapter.attention, tokens, settings.adapter_scale) if adapted else nullcontext()
        with scope:
            for number, timestep in enumerate(self.scheduler.timesteps, 1):
                noise = self._noise(latent, timestep, text, controls)
                latent = self.scheduler.step(noise, timestep, latent).prev_sample
                on_step(number, settings.steps)
        return self.decode(latent).cpu()

    def _text(self, prompt: str, guided: bool, size: tuple[int, int]) -> dict:
        """What UNet and ControlNets are called with: the unconditional row first where guided."""
        made = self.base.encode_prompts([self.settings.negative_prompt, prompt] if guided else [prompt])
        unet = self.base.unet
        made = {name: tensor.to(unet.device, unet.dtype) for name, tensor in made.items()}
        sizes = torch.tensor([[*size, 0, 0, *size]], device=unet.device, dtype=unet.dtype)
        added = {"text_embeds": made["pooled"], "time_ids": sizes.expand(len(made["pooled"]), -1)}
        return {"encoder_hidden_states": made["prompt"], "added_cond_kwargs": added}

    def _controls(self, subject: Subject, tokens: Tensor) -> list[Control]:
        photo, settings = subject.photo, self.settings
        points = draw_points(subject.face.with_landmarks().landmarks, tuple(photo.shape[-2:]))
        edges = canny_edges(photo[0], settings.canny_low, settings.canny_high)
        found = [Control(self.identity_net, points[None], tokens, settings.identity_scale),
                 Control(self.canny_net, edges[None], None, settings.canny_scale)]  # fmt: skip
        return [control for control in found if control.scale > 0]

    def _noise(self, latent: Tensor, timestep: Tensor, text: dict, controls: list[Control]) -> Tensor:
        """The model's guided answer to ``latent`` [1, C, h, w], float32."""
        unet, rows = self.base.unet, len(text["encoder_hidden_states"])
        x = self.scheduler.scale_model_input(latent, timestep).to(unet.dtype).expand(rows, -1, -1, -1)
        answers = [self._residuals(control, x, timestep, text) for control in controls]
        residuals = {}
        if answers:
            downs, mids = zip(*answers, strict=True)
            residuals = {"down_block_additional_residuals": [sum(level) for level in zip(*downs, strict=True)],
                         "mid_block_additional_residual": sum(mids)}  # fmt: skip
        out = unet(x, timestep, **text, **residuals).sample.float()
        if rows == 1:
            return out
        blank, conditional = out.chunk(2)
        return blank + self.settings.guidance * (conditional - blank)

    def _residuals(self, control: Control, x: Tensor, timestep: Tensor, text: dict) -> tuple[list[Tensor], Tensor]:
        reads = text if control.context is None else {**text, "encoder_hidden_states": control.context}
        picture = control.picture.to(x).expand(len(x), -1, -1, -1)
        return control.network(
            x, timestep, controlnet_cond=picture, conditioning_scale=control.scale, return_dict=False, **reads
        )
