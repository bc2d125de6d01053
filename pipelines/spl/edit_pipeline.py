"""Text-driven editing with structure preservation on diffusers, for use without ComfyUI."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

from ..images import check_image, check_mask
from ..masks import MaskUpsampling
from ..vae_pictures import VaePictures
from ..weights.prompts import encode_prompts
from .attention_control import SOURCE, TARGET, AttentionControl, AttentionSettings
from .guidance import StructureGuidance
from .inversion import (
    Level,
    invert_by_ddim,
    lcm_timesteps,
    sample_by_virtual_inversion,
    sample_from_inversion,
    virtual_inversion_estimate,
)
from .optimise import preserve_structure
from .prompts import PromptTokens, read_prompt
from .settings import StructureSettings
from .unet_control import EditModel, EditRun
from .word_masks import MapRecorder, edge_mask, map_limit, words_mask

LCM_GRID = 50  # noise levels that a consistency model is distilled on
BACKBONES = ("virtual inversion", "ddim inversion")


@dataclass(frozen=True)
class EditSettings:
    """How a picture is edited by text; defaults from the paper's appendix B and the authors' app.

    backbone: "virtual inversion" (InfEdit) or "ddim inversion" (of Prompt-to-Prompt; needs no consistency model).
    steps: of sampling. strength: part of the noise schedule that is run, 0..1.
    source_guidance, target_guidance: strength of classifier-free guidance for each prompt; 1 is none. DDIM inversion
    is made without guidance and does not use the first.
    eta: fresh noise of virtual inversion, 0..1. inversion_iterations: of each DDIM inversion step; more is exacter.
    """

    backbone: str = "virtual inversion"
    steps: int = 15
    strength: float = 1.0
    source_guidance: float = 1.0
    target_guidance: float = 2.0
    eta: float = 1.0
    inversion_iterations: int = 1
    attention: AttentionSettings = AttentionSettings()

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone is {self.backbone!r}: use one of {', '.join(BACKBONES)}.")
        if self.backbone != BACKBONES[0] and self.attention.layout_branch:
            raise ValueError(f"layout_branch belongs to virtual inversion, not to {self.backbone!r}: switch it off.")
        for name in ("strength", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use a value between 0 and 1.")
        if self.steps < 1 or self.strength == 0:
            raise ValueError(f"steps is {self.steps}, strength {self.strength}: use at least 1 step and above 0.")


class TextEditPipeline(VaePictures, DiffusionPipeline):
    """Edits a picture from a source prompt to a target prompt, keeping its structure (SD1.x, SD2.x, SDXL; notes 5).

    For models of epsilon or v prediction, consistency-distilled (LCM) or not. The scheduler is only asked for the noise
    levels of the training (``alphas_cumprod``) and the kind of prediction.
    """

    _optional_components = ["text_encoder_2", "tokenizer_2"]

    def __init__(self, vae: AutoencoderKL, text_encoder, tokenizer, unet: UNet2DConditionModel, scheduler,
                 text_encoder_2=None, tokenizer_2=None):  # fmt: skip
        super().__init__()
        if not hasattr(scheduler, "alphas_cumprod"):
            raise TypeError(
                f"the scheduler is a {type(scheduler).__name__}, which has no alphas_cumprod: "
                "use DDIMScheduler.from_config(scheduler.config)."
            )
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self,
        image: torch.Tensor,
        source_prompt: str,
        target_prompt: str,
        negative_prompt: str = "",
        settings: EditSettings | None = None,
        structure: StructureSettings | None = None,
        start: float = 0.8,
        mask: torch.Tensor | None = None,
        refine: bool = True,
        generator: torch.Generator | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Edit ``image`` ``[B, 3, H, W]`` in 0..1; ``source_prompt`` describes it, ``target_prompt`` the result.

        ``structure`` None edits without structure preservation; otherwise the steps after the fraction ``start`` keep
        the structure of the source where ``mask`` is white (None: everywhere), and with ``refine`` the result too.
        ``generator`` is one of the CPU. ``on_step(done, total)`` may raise. Returns ``[B, 3, h, w]`` in 0..1, h and w
        rounded down to whole latent cells (cropped around the centre).
        """
        settings = settings or EditSettings()
        source, mask = self._prepared(image, mask, structure.window if structure else 1)
        clean = self.encode(source)
        plan = self.plan_of_texts(settings, source_prompt, target_prompt, negative_prompt, clean)
        guidance = None
        if structure is not None:
            guidance = StructureGuidance(self.decode(clean), plan.sigmas, structure, start, mask)
        result = self.decode(self.edit(clean, plan, settings, guidance, generator, on_step))
        return preserve_structure(result, source, mask, structure) if structure is not None and refine else result

    @torch.no_grad()
    def word_mask(
        self,
        image: torch.Tensor,
        source_prompt: str,
        target_prompt: str,
        source_words: list[str] = (),
        target_words: list[str] = (),
        threshold: float = 0.4,
        outside: bool = False,
        negative_prompt: str = "",
        settings: EditSettings | None = None,
        upsampling: MaskUpsampling | None = None,
        generator: torch.Generator | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Where the words are, ``[B, H, W]`` in 0..1 at the size of ``image``'s crop: a mask for ``__call__``.

        Runs the whole edit without structure preservation and records its attention (notes 5.2). The source's words
        are looked for in the source, the target's words in the edited picture; the union of both is returned, or with
        ``outside`` the rest of the picture.
        """
        settings = settings or EditSettings()
        picture, _ = self._prepared(image, None, 1)
        clean = self.encode(picture)
        plan = self.plan_of_texts(settings, source_prompt, target_prompt, negative_prompt, clean)
        sides = [(SOURCE, plan.source, source_words), (TARGET, plan.target, target_words)]
        sides = [side for side in sides if side[2]]
        if not sides:
            raise ValueError("no words are given: name at least one word of the source or of the target prompt.")
        for _, prompt, words in sides:
            for word in words:
                prompt.positions(word)
        limit = map_limit(tuple(clean.shape[-2:]))
        plan.model.run.recorders.update({branch: MapRecorder(limit) for branch, _, _ in sides})
        edited = self.decode(self.edit(clean, plan, settings, None, generator, on_step))
        guides = {SOURCE: picture, TARGET: edited}
        found = [
            (words_mask(plan.model.run.recorders[branch].mean(), prompt, list(words), threshold), guides[branch])
            for branch, prompt, words in sides
        ]
        mask = edge_mask(found, upsampling)[:, 0]
        return 1 - mask if outside else mask

    @torch.no_grad()
    def edit(self, source, plan: "EditPlan", settings: EditSettings, guidance=None, generator=None, on_step=None,
             noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """The edited clean latent of ``source`` ``[B, C, h, w]`` (notes 5.6-8).

        ``noise``: ``[T, B, C, h, w]``, the start's and then each step's; drawn from ``generator`` where it is None.
        """
        steps = len(plan.levels) - 1
        virtual = settings.backbone == BACKBONES[0]

        def predict(step, latents):
            denoised = plan.model.denoise(step, latents)
            clean = denoised[1:]
            if virtual:
                clean = [virtual_inversion_estimate(source, each, denoised[SOURCE]) for each in clean]
            if guidance is not None:
                clean[0] = guidance.refine(clean[0], plan.levels[step].sigma, self.decode, self.encode)
            if on_step is not None:
                on_step(step + 1, steps)
            return clean

        def draw(step):
            if noise is not None:
                return noise[step].to(source)
            return torch.randn(source.shape, generator=generator, dtype=torch.float32).to(source)

        if not virtual:
            path = invert_by_ddim(plan.model.denoise_source, source, plan.levels, settings.inversion_iterations)
            return sample_from_inversion(predict, path, plan.levels)
        first = plan.levels[0]
        noised = first.signal * source + first.noise * draw(0)
        return sample_by_virtual_inversion(
            predict, source, noised, plan.levels, lambda step: draw(step + 1),
            settings.attention.branches, settings.eta,
        )  # fmt: skip

    def _prepared(self, image, mask, window: int):
        source = check_image(self._cropped(check_image(image, "image", self.vae_cell)), "cropped image", window)
        if mask is not None:
            mask = self._cropped(check_mask(mask, tuple(image.shape[-2:]), image.shape[0]))
        return source.to(self.unet.device), mask

    def plan_of_texts(self, settings: EditSettings, source_prompt, target_prompt, negative_prompt, clean) -> "EditPlan":
        for name, prompt in (("source", source_prompt), ("target", target_prompt), ("negative", negative_prompt)):
            if not isinstance(prompt, str):
                raise ValueError(f"the {name} prompt is {prompt!r}: give one text, all images of a batch share it.")
        encoders = [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]
        tokenizers = [tokenizer for tokenizer in (self.tokenizer, self.tokenizer_2) if tokenizer is not None]
        embedded = encode_prompts(encoders, tokenizers, [negative_prompt, source_prompt, target_prompt])
        embedded = {name: value.to(self.unet.device, self.unet.dtype) for name, value in embedded.items()}
        source, target = self.read_prompt(source_prompt), self.read_prompt(target_prompt)
        return self.plan(settings, embedded, source, target, tuple(clean.shape[-2:]))

    def plan(self, settings: EditSettings, embedded: dict, source: PromptTokens, target: PromptTokens,
             latent: tuple[int, int], timesteps: list[int] | None = None) -> "EditPlan":  # fmt: skip
        """What a run needs from prompts that are embedded already; ``timesteps`` where the schedule is not to be ours.

        ``embedded``: ``{"prompt": [3, tokens, W]}`` of negative, source and target prompt; SDXL also ``"pooled"``.
        """
        if timesteps is None:
            timesteps = self._timesteps(settings)
        levels = [Level.of_alpha_bar(float(self.scheduler.alphas_cumprod[t])) for t in timesteps] + [Level(1.0, 0.0)]
        run = EditRun(AttentionControl(settings.attention, source, target), len(timesteps), latent)
        guidance = (settings.source_guidance, settings.target_guidance)
        prediction = self.scheduler.config.prediction_type
        model = EditModel(self.unet, prediction, embedded, guidance, levels, timesteps, run, self.vae_cell)
        return EditPlan(model, levels, source, target)

    def _timesteps(self, settings: EditSettings) -> list[int]:
        """The last ``steps`` of the schedule: a consistency model's grid, or even strides from the top for DDIM."""
        total = int(settings.steps / settings.strength)
        if settings.backbone == BACKBONES[0] and total > LCM_GRID:
            raise ValueError(
                f"steps is {settings.steps} at strength {settings.strength}, a schedule of {total}: virtual inversion "
                f"has {LCM_GRID}, so lower the steps or raise the strength."
            )
        if settings.backbone == BACKBONES[0]:
            return lcm_timesteps(total)[-settings.steps :]
        count = self.scheduler.config.num_train_timesteps
        return [round(count * (total - i) / total) - 1 for i in range(total)][-settings.steps :]

    def read_prompt(self, text: str) -> PromptTokens:
        """The tokens of ``text`` as the (first) text encoder reads them, and which word they belong to."""
        tokenizer = self.tokenizer
        length = self.text_encoder.config.max_position_embeddings
        ids = tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids
        end = ids.index(tokenizer.eos_token_id, 1)
        return read_prompt(text, ids, end, lambda word: tokenizer(word, add_special_tokens=False).input_ids)


@dataclass(frozen=True, eq=False)
class EditPlan:
    """One run: the model under attention control, T+1 noise levels, and the two prompts' tokens."""

    model: EditModel
    levels: list[Level]
    source: PromptTokens
    target: PromptTokens

    @property
    def sigmas(self) -> list[float]:
        """The levels as samplers call them, T+1 falling numbers."""
        return [level.sigma for level in self.levels]
