"""Puts attention control, and the recording of attention maps, into one model call of ComfyUI.

Everything is written into copies of the run's options, behind what other nodes have put there: self-attention through
the list ``attn1_patch``, cross-attention through ``attn2`` replacements that call the one they replace.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from comfy.ldm.flux.math import apply_rope
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...pipelines.spl.attention_control import TARGET, AttentionControl, choose_branches, edited_cross_attention
from ...pipelines.spl.word_masks import MapRecorder, attention_maps, joint_attention_maps

# ComfyUI's index of the prompt in the list [cond, uncond].
_CONDITIONAL = 0


def is_unet(model) -> bool:
    """Whether a BaseModel's network is a UNet with cross-attention (SD1.x, SD2.x, SDXL)."""
    return isinstance(model.diffusion_model, UNetModel)


def add_self_patch(options: dict, patch: Callable) -> dict:
    """A copy of transformer_options with one more ``attn1_patch``, the last to act."""
    patches = options.get("patches", {})
    return {**options, "patches": {**patches, "attn1_patch": [*patches.get("attn1_patch", []), patch]}}


def chain_cross_attention(options: dict, unet: UNetModel, make: Callable) -> dict:
    """A copy of transformer_options with ``make(previous)`` as the cross-attention of every block of ``unet``.

    ``previous`` is the replacement that another node has set there, or None.
    """
    replacements = options.get("patches_replace", {})
    existing = replacements.get("attn2", {})
    parts = (("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks))
    blocks = {(name, number) for name, blocks in parts for number in range(len(blocks))}
    chained = {key: make(existing.get(key)) for key in blocks | set(existing)}
    return {**options, "patches_replace": {**replacements, "attn2": chained}}


def control_attention(options: dict, unet: UNetModel, control: AttentionControl, step: int, steps: int) -> dict:
    """A copy of transformer_options for a call whose rows are, in each half of guidance, the branches of an edit."""
    options = add_self_patch(options, _SelfControl(control, step, steps))
    if not control.cross_acts(step, steps):
        return options
    return chain_cross_attention(options, unet, partial(_CrossControl, control))


@dataclass(frozen=True, eq=False)
class _SelfControl:
    """attn1_patch: queries, keys and values of each branch from the branch that the control names."""

    control: AttentionControl
    step: int
    steps: int

    def __call__(self, n, context, value, extra_options):
        chosen = []
        halves = extra_options["cond_or_uncond"]
        rows = zip(halves, *(x.chunk(len(halves)) for x in (n, context, value)), strict=True)
        for half, *each in rows:
            rule = self.control.self_sources(self.step, self.steps, n.shape[1], half == _CONDITIONAL)
            chosen.append([choose_branches(x, sources) for x, sources in zip(each, rule, strict=True)])
        return tuple(torch.cat(x) for x in zip(*chosen, strict=True))


def _attention(extra_options: dict) -> Callable:
    """ComfyUI's attention with the settings of the block that ``extra_options`` came with."""
    return partial(
        optimized_attention, heads=extra_options["n_heads"], attn_precision=extra_options["attn_precision"],
        transformer_options=extra_options,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _CrossControl:
    """attn2 replacement: the target's rows of the conditional half get the edited map.

    What a replacement of another node adds (image prompts, for instance) stays: only the difference that the edit makes
    to the plain attention is added to its result.
    """

    control: AttentionControl
    previous: Callable | None

    def __call__(self, q, k, v, extra_options):
        attend, branches = _attention(extra_options), self.control.settings.branches
        out = attend(q, k, v) if self.previous is None else self.previous(q, k, v, extra_options)
        halves = extra_options["cond_or_uncond"]
        results = list(out.chunk(len(halves)))
        for index, half in enumerate(halves):
            if half != _CONDITIONAL:
                continue
            each = [x.chunk(len(halves))[index] for x in (q, k, v)]
            edited = edited_cross_attention(attend, *each, self.control.cross, branches)
            rows = list(results[index].chunk(branches))
            if self.previous is None:
                rows[TARGET] = edited
            else:
                rows[TARGET] = rows[TARGET] + (edited - attend(*(x.chunk(branches)[TARGET] for x in each)))
            results[index] = torch.cat(rows)
        return torch.cat(results)


def record_attention(options: dict, network, recorder: MapRecorder, latent: tuple[int, int]) -> dict:
    """A copy of transformer_options whose call adds its attention to the prompt to ``recorder``.

    For a call on latents of (H, W) ``latent`` with the prompt's conditioning alone. UNets: cross-attention. Flux:
    what picture tokens pay to text tokens in the double blocks 12 to 18 of 19 (paper); in smaller models the same part.
    """
    if isinstance(network, UNetModel):
        return chain_cross_attention(options, network, partial(_CrossRecord, recorder))
    if isinstance(network, Flux):
        size = tuple(-(-side // network.patch_size) for side in latent)
        return add_self_patch(options, _JointRecord(recorder, 12 * len(network.double_blocks) // 19, size))
    raise ValueError(
        f"the model is a {type(network).__name__}: masks from words work with SD1.x, SD2.x, SDXL and Flux models."
    )


@dataclass(frozen=True, eq=False)
class _CrossRecord:
    """attn2 replacement that changes nothing and records the map of each layer of a useful size."""

    recorder: MapRecorder
    previous: Callable | None

    def __call__(self, q, k, v, extra_options):
        size = tuple(extra_options["activations_shape"][-2:])
        if self.recorder.wants(size):
            self.recorder.add(attention_maps(q, k, extra_options["n_heads"]), size)
        if self.previous is None:
            return _attention(extra_options)(q, k, v)
        return self.previous(q, k, v, extra_options)


@dataclass(frozen=True, eq=False)
class _JointRecord:
    """attn1_patch of Flux's blocks that changes nothing and records where picture tokens look at text tokens."""

    recorder: MapRecorder
    first_block: int
    size: tuple[int, int]

    def __call__(self, q, k, v, pe=None, attn_mask=None, extra_options=None, **unused):
        if extra_options["block_type"] == "double" and extra_options["block_index"] >= self.first_block:
            maps = joint_attention_maps(*apply_rope(q, k, pe), extra_options["img_slice"][0])
            # Reference pictures, if any, stand behind the picture's own tokens.
            self.recorder.add(maps[:, : self.size[0] * self.size[1]], self.size)
        return {}
