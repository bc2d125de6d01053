"""Keeps the photo beside the noise while a relighting MODEL samples: its own, at its size, and with every prompt.

Relight Conditioning puts photo and mask on each prompt, and ComfyUI lays them beside the noise as they are. Without
this a latent of another size, or a prompt that went another way, ends in an error of the network's first convolution,
and one latent taken out of a batch gets the first photo, whoever it is of.
"""

import logging

import torch
from comfy.patcher_extension import WrappersMP

from ...pipelines.idetail.conditioning import latent_mask
from ..convert import named_errors

_KEY = "likeness_relight_photo"
_NODE = "Relight LoRA Loader"


def keep_photo(model) -> None:
    """Add the wrappers to ``model``, which is the caller's own clone; twice is as once."""
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _at_sampled_size), (WrappersMP.APPLY_MODEL, _with_every_prompt)):
        model.remove_wrappers_with_key(kind, _KEY)
        model.add_wrapper_with_key(kind, _KEY, wrapper)


def _at_sampled_size(executor, noise, *args, **kwargs):
    """OUTER_SAMPLE wrapper. The run's conditionings are copies, so what went into the sampler stays as it was."""
    for conditionings in executor.class_obj.conds.values():
        for conditioning in conditionings or ():
            beside = conditioning.get("noise_concat")
            if beside is not None and beside.shape[1] == noise.shape[1] + 1:
                with named_errors(_NODE):
                    check_number(len(beside), len(noise))
                    conditioning["noise_concat"] = resized(beside, tuple(noise.shape[-2:]))
    return executor(noise, *args, **kwargs)


def check_number(photos: int, latents: int) -> None:
    """``ValueError`` where ComfyUI, which drops and repeats photos without a word, could pair them wrongly."""
    if latents % photos:
        raise ValueError(
            f"Relight Conditioning has a batch of {photos} photos, masks or prompts, which does not fit a batch of "
            f"{latents} latents: sample {photos} latents or a multiple of that; for some of the photos take them out "
            "before Relight Conditioning, not their latents after it."
        )


def resized(beside: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mask and latent of the photo, [B, 1 + C, h, w], at ``size``; ``ValueError`` where that is another shape."""
    have = tuple(beside.shape[-2:])
    if have == size:
        return beside
    # Sizes are rounded to whole cells, so that one shape may be a cell off at another scale.
    if abs(have[0] * size[1] - have[1] * size[0]) > max(*have, *size):
        raise ValueError(
            f"the photo of Relight Conditioning has a latent of {have[1]}x{have[0]}, the latent being sampled is "
            f"{size[1]}x{size[0]}, another shape: run Relight Conditioning on the photo at this size, or sample the "
            "latent that it gives out."
        )
    logging.info("%s: the photo's latent is resized from %dx%d to %dx%d.", _NODE, *have[::-1], *size[::-1])
    source = torch.nn.functional.interpolate(beside[:, 1:], size=size, mode="bilinear", antialias=True)
    return torch.cat([latent_mask(beside[:, :1], size).to(source), source], 1)


def _with_every_prompt(executor, x, t, c_concat=None, *args, **kwargs):
    """APPLY_MODEL wrapper: here only prompts that the sampler really asks for arrive."""
    found, wanted = 0 if c_concat is None else c_concat.shape[1], x.shape[1] + 1
    if found != wanted:
        raise ValueError(
            f"{_NODE}: a prompt reaches the sampler with {found} channels of photo and mask, relighting needs "
            f"{wanted}: send all prompts, positive and negative, through Relight Conditioning. A node that is given "
            "text alone (Edit Mask from Prompt Words) takes the MODEL from before the loader."
        )
    return executor(x, t, c_concat, *args, **kwargs)
