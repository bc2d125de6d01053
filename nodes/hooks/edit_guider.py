"""The guider of text edits: one model call for source and target, under attention control.

The sampler carries the target's latent alone and hands the other branches over in the options of the call
(``EditBranches``). So what goes through PREDICT_NOISE, and what other nodes may refine there, is exactly the clean
estimate of the target, with the batch of the latent that is sampled.
"""

import math
from dataclasses import dataclass

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import WrappersMP

from ...pipelines.spl.attention_control import LAYOUT, TARGET, AttentionControl
from ...pipelines.spl.guidance import current_step
from ...pipelines.spl.inversion import virtual_inversion_estimate
from ..convert import named_errors
from .attention_patches import control_attention, is_unet

NODE = "Edit Guider"
_KEY = "likeness_edit_branches"
# What ComfyUI attaches to a whole call, so that source and target cannot each have their own.
_SHARED = ("control", "hooks", "gligen")


@dataclass
class EditBranches:
    """The branches of one step that the sampler does not carry itself.

    source, layout: their noisy latents, shaped as the target's; layout is None where nothing reads it.
    clean: the source's clean latent for virtual inversion, None for plain predictions.
    layout_clean: the clean estimate of the layout branch; the guider puts it here.
    answered: whether the guider was asked; a node around it may give an earlier step's prediction instead.
    """

    source: torch.Tensor
    layout: torch.Tensor | None
    clean: torch.Tensor | None
    layout_clean: torch.Tensor | None = None
    answered: bool = False

    def in_options(self, model_options: dict) -> dict:
        """A copy of a run's options that carries these branches."""
        options = {**model_options.get("transformer_options", {}), _KEY: self}
        return {**model_options, "transformer_options": options}


class EditGuider(comfy.samplers.CFGGuider):
    """Guider of three conditionings: "source", "positive" (the target) and "negative".

    guidance: strength for source and target; the layout branch reads and is guided as the source.
    """

    def __init__(self, model, control: AttentionControl, guidance: tuple[float, float]):
        super().__init__(model)
        self.control = control
        self.readers = ["source", "positive", "source"][: control.settings.branches]
        self.guidance = [*guidance, guidance[0]][: control.settings.branches]
        self.set_cfg(guidance[1])

    @property
    def branches(self) -> int:
        """How many latents share a call of the model, for each of the one that is sampled."""
        return len(self.readers)

    def outer_sample(self, noise, *args, **kwargs):
        """Checks what cannot work before the first step, and asks for memory for all branches."""
        with named_errors(NODE):
            self._check()

        def reserve(executor, model, shape, *rest, **more):
            return executor(model, [self.branches * shape[0], *shape[1:]], *rest, **more)

        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.PREPARE_SAMPLING, _KEY, reserve, self.model_options, is_model_options=True
        )
        return super().outer_sample(noise, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Clean estimate of the target, of ``x``'s shape."""
        options = dict(model_options["transformer_options"])
        branches = options.pop(_KEY, None)
        if branches is None:
            raise ValueError(
                f"{NODE}: this sampler has no source branch: connect Virtual Inversion Sampler or DDIM Inversion "
                "Sampler."
            )
        latents = [branches.source, x, branches.layout][: len(self.readers)]
        model_options = {**model_options, "transformer_options": options}
        with named_errors(NODE):
            source, *clean = self._denoise(latents, timestep, model_options)
        if branches.clean is not None:
            clean = [virtual_inversion_estimate(branches.clean, each, source) for each in clean]
        branches.answered = True
        if len(clean) == LAYOUT:
            branches.layout_clean = clean[LAYOUT - 1]
        return clean[TARGET - 1]

    def denoise_source(self, x, timestep, model_options) -> torch.Tensor:
        """Clean prediction of ``x`` under the source conditioning alone, for inversion."""
        return comfy.samplers.calc_cond_batch(
            self.inner_model, [self.conds["source"]], x, timestep, model_options
        )[0]  # fmt: skip

    def _denoise(self, latents: list, timestep, model_options: dict) -> list[torch.Tensor]:
        """Guided clean predictions of the branches by one model call (two where memory is short: halves of guidance).

        The branches are rows of *one* conditioning, so ComfyUI never separates them, ControlNets and the like see each
        branch's own latent, and other nodes see the two conditionings they know.
        """
        count, rows = len(latents), torch.cat(latents)
        names = [self.readers, ["negative"] * count]
        conds = [[merged(*(self.conds[name][0] for name in half), batch=len(latents[0]))] for half in names]
        optimised = not model_options.get("disable_cfg1_optimization", False)
        if optimised and all(math.isclose(weight, 1.0) for weight in self.guidance):
            conds[1] = None
        sigmas = timestep.repeat(count)
        both = comfy.samplers.calc_cond_batch(
            self.inner_model, conds, rows, sigmas, self._controlled(timestep, model_options)
        )
        for function in model_options.get("sampler_pre_cfg_function", []):
            both = function({
                "conds": conds, "conds_out": both, "cond_scale": self.cfg, "timestep": sigmas, "input": rows,
                "sigma": sigmas, "model": self.inner_model, "model_options": model_options,
            })  # fmt: skip
        guided = zip(*(each.chunk(count) for each in both), self.guidance, latents, self.readers, strict=True)
        return [
            comfy.samplers.cfg_function(
                self.inner_model, text, blank, weight, x, timestep, model_options,
                cond=self.conds[name], uncond=self.conds["negative"],
            )
            for text, blank, weight, x, name in guided
        ]  # fmt: skip

    def _controlled(self, timestep, model_options: dict) -> dict:
        """The options with attention control for the step that ``timestep`` belongs to."""
        if not self.control.settings.acts:
            return model_options
        options = model_options["transformer_options"]
        levels = options["sample_sigmas"].tolist()
        step = current_step(float(timestep.flatten()[0]), levels)
        network = self.inner_model.diffusion_model
        return {
            **model_options,
            "transformer_options": control_attention(options, network, self.control, step, len(levels) - 1),
        }

    def _check(self):
        if "sampler_calc_cond_batch_function" in self.model_options:
            raise ValueError(
                "another node of this model computes the conditionings its own way (sampler_calc_cond_batch_function), "
                "which an edit of several branches cannot use: connect the model from before that node."
            )
        if self.control.settings.acts and not is_unet(self.model_patcher.model):
            raise ValueError(
                f"the model is a {type(self.model_patcher.model).__name__}, attention control works with UNets (SD1.x, "
                "SD2.x, SDXL): set cross_fraction and self_fraction to 0."
            )
        for name, entries in self.conds.items():
            shown = {"positive": "target"}.get(name, name)
            if len(entries) == 1 and (entries[0].get("start_percent", 0) > 0 or entries[0].get("end_percent", 1) < 1):
                raise ValueError(
                    f"the {shown} conditioning is bound to a range of timesteps: source and target are compared in "
                    "every step, so take Conditioning Set Timestep Range out."
                )
            if len(entries) != 1 or "area" in entries[0] or "mask" in entries[0]:
                raise ValueError(
                    f"the {shown} conditioning is combined of {len(entries)} or bound to an area or mask: branches are "
                    "compared over the whole picture, so give one prompt each. To edit a part only, use Set Latent "
                    "Noise Mask."
                )
        source, target = self.conds["source"][0], self.conds["positive"][0]
        lengths = zip(("target", "source"), (target, source), self.control.cross.transfer.shape, strict=True)
        for name, entry, tokens in lengths if self.control.settings.acts else ():
            if entry["cross_attn"].shape[1] != tokens:
                raise ValueError(
                    f"the {name} conditioning has {entry['cross_attn'].shape[1]} tokens, {name}_text has {tokens}: "
                    "encode the same text, with the same CLIP."
                )
        for key in _SHARED:
            if source.get(key) is not None and source[key] is not target.get(key):
                raise ValueError(
                    f"the source conditioning has a {key} of its own: all branches share one model call, so attach it "
                    "to the target conditioning, whose it is for both."
                )


def merged(*entries: dict, batch: int) -> dict:
    """One conditioning whose rows are ``batch`` rows of each of ``entries``, in that order.

    Everything else is that of the second entry, the target's, or of the only one.
    """
    base = entries[min(TARGET, len(entries) - 1)]
    rows = {}
    for key in base["model_conds"]:
        if not all(key in entry["model_conds"] for entry in entries):
            raise ValueError(f"source and target conditioning differ: only one of them has {key!r}.")
        first, *others = (entry["model_conds"][key].process_cond(batch_size=batch, area=None) for entry in entries)
        # Prompts may be of any two lengths: repeating a shorter one's tokens changes nothing.
        if not isinstance(first, CONDCrossAttn) and not all(first.can_concat(other) for other in others):
            raise ValueError(f"source and target conditioning differ in {key!r}: give both the same.")
        rows[key] = first._copy_with(first.concat(others))
    return {**base, "model_conds": rows}
