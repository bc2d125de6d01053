"""A UNet of diffusers that denoises all branches of an edit in one call, under attention control.

Rows of the batch are ordered by half of guidance (unconditional, conditional), then branch, then image.
"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn.functional import scaled_dot_product_attention

from .attention_control import TARGET, AttentionControl, choose_branches, edited_cross_attention
from .inversion import Level, clean_from_noise
from .word_masks import MapRecorder, attention_maps


@dataclass
class EditRun:
    """What the attention layers have to know about the call they are in.

    step, steps: which step of how many. conditional: for each half in the batch, whether it reads the prompts.
    latent: size (H, W) of the latents. recorders: branch -> where its cross-attention maps go.
    """

    control: AttentionControl
    steps: int
    latent: tuple[int, int]
    step: int = 0
    conditional: tuple[bool, ...] = (False, True)
    recorders: dict[int, MapRecorder] = field(default_factory=dict)


class BranchAttention:
    """Attention processor for the transformer blocks of a ``UNet2DConditionModel``."""

    def __init__(self, run: EditRun):
        self.run = run

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        """Attention of ``hidden_states`` ``[rows, tokens, width]``, to itself or to the prompts."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        attend_half = self._to_picture if encoder_hidden_states is None else self._to_prompts
        count = len(self.run.conditional)
        halves = zip(q.chunk(count), k.chunk(count), v.chunk(count), self.run.conditional, strict=True)
        out = torch.cat([attend_half(attn.heads, *half) for half in halves])
        return attn.to_out[1](attn.to_out[0](out))

    def _to_picture(self, heads: int, q, k, v, conditional: bool):
        rule = self.run.control.self_sources(self.run.step, self.run.steps, q.shape[1], conditional)
        return _attend(heads, *(choose_branches(x, chosen) for x, chosen in zip((q, k, v), rule, strict=True)))

    def _to_prompts(self, heads: int, q, k, v, conditional: bool):
        control, branches = self.run.control, self.run.control.settings.branches
        out = _attend(heads, q, k, v)
        if conditional:
            self._record(heads, q, k)
        if not conditional or not control.cross_acts(self.run.step, self.run.steps):
            return out
        edited = edited_cross_attention(lambda *qkv: _attend(heads, *qkv), q, k, v, control.cross, branches)
        parts = list(out.chunk(branches))
        parts[TARGET] = edited
        return torch.cat(parts)

    def _record(self, heads: int, q, k):
        branches = self.run.control.settings.branches
        for branch, recorder in self.run.recorders.items():
            size = _map_size(q.shape[1], self.run.latent)
            if recorder.wants(size):
                recorder.add(attention_maps(q.chunk(branches)[branch], k.chunk(branches)[branch], heads), size)


def _attend(heads: int, q, k, v):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _map_size(tokens: int, latent: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a layer with ``tokens`` image tokens: the latent halved some times, rounded up each time."""
    height, width = latent
    while height * width > tokens:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width


@contextmanager
def attention_control(unet, run: EditRun):
    """``unet`` under ``run``'s control; its own attention processors are back afterwards, whatever happens."""
    processors = unet.attn_processors
    foreign = {type(p).__name__ for p in processors.values() if not isinstance(p, (AttnProcessor, AttnProcessor2_0))}
    if foreign:
        raise ValueError(
            f"the UNet has attention processors of the kind {', '.join(sorted(foreign))}, whose work attention control "
            "cannot keep: unload them, or call unet.set_default_attn_processor()."
        )
    try:
        unet.set_attn_processor(BranchAttention(run))
        yield
    finally:
        unet.set_attn_processor(processors)


class EditModel:
    """Clean predictions of the branches of one run.

    prompts: ``{"prompt": [3, tokens, W]}`` of negative, source and target prompt, for SDXL also ``"pooled"``.
    guidance: strength for source and target; the layout branch reads and is guided as the source (authors' code).
    levels, timesteps: of every step. cell: pixels a side of one latent cell, which SDXL is told the picture's size by.
    """

    def __init__(self, unet, prediction_type: str, prompts: dict, guidance: tuple[float, float],
                 levels: Sequence[Level], timesteps: Sequence[int], run: EditRun, cell: int = 8):  # fmt: skip
        self.cell = cell
        self.unet, self.prompts, self.levels, self.timesteps, self.run = unet, prompts, levels, timesteps, run
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {prediction_type!r}: supported are epsilon and v_prediction.")
        self.predicts_velocity = prediction_type == "v_prediction"
        branches = run.control.settings.branches
        self.readers, self.guidance = [1, 2, 1][:branches], [*guidance, guidance[0]][:branches]

    def denoise(self, step: int, latents: list[torch.Tensor]) -> list[torch.Tensor]:
        """Guided clean predictions of ``latents``, one ``[B, C, h, w]`` a branch, in variance-preserving form."""
        guided = any(weight != 1 for weight in self.guidance)
        conditional = (False, True) if guided else (True,)
        readers = [reader if half else 0 for half in conditional for reader in self.readers]
        self.run.step, self.run.conditional = step, conditional
        with attention_control(self.unet, self.run):
            halves = self._predict(step, torch.cat(latents * len(conditional)), readers).chunk(len(conditional))
        text = halves[-1].chunk(len(latents))
        if not guided:
            return list(text)
        blank = halves[0].chunk(len(latents))
        return [b + weight * (t - b) for b, t, weight in zip(blank, text, self.guidance, strict=True)]

    def denoise_source(self, step: int, x: torch.Tensor) -> torch.Tensor:
        """Clean prediction of ``x`` under the source prompt alone, for inversion."""
        return self._predict(step, x, [1])

    def _predict(self, step: int, x: torch.Tensor, readers: list[int]) -> torch.Tensor:
        each = len(x) // len(readers)
        rows = {name: tensor[readers].repeat_interleave(each, dim=0) for name, tensor in self.prompts.items()}
        options = {}
        if "pooled" in rows:
            height, width = (side * self.cell for side in x.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=x.device, dtype=self.unet.dtype)
            options["added_cond_kwargs"] = {"text_embeds": rows["pooled"], "time_ids": sizes.expand(len(x), 6)}
        timestep = torch.tensor(self.timesteps[step], device=x.device)
        output = self.unet(x.to(self.unet.dtype), timestep, encoder_hidden_states=rows["prompt"], **options)
        level, output = self.levels[step], output.sample.float()
        if self.predicts_velocity:
            return level.signal * x - level.noise * output
        return clean_from_noise(x, output, level)
