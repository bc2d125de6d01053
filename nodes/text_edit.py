"""Nodes that edit a photo by text: a guider, two samplers for SamplerCustomAdvanced, and masks from words."""

import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..pipelines.images import check_image
from ..pipelines.masks import MaskUpsampling
from ..pipelines.spl.attention_control import METHODS, AttentionControl, AttentionSettings
from ..pipelines.spl.word_masks import edge_mask, split_words, words_mask
from .convert import named_errors, to_pipeline
from .hooks.edit_guider import NODE as GUIDER
from .hooks.edit_guider import EditGuider
from .hooks.edit_samplers import sample_ddim_inversion, sample_virtual_inversion
from .hooks.prompt_tokens import read_clip_prompt
from .hooks.word_maps import attention_to_prompt

_CATEGORY = "Likeness/SPL"
_MASK = "Edit Mask from Prompt Words"


def _text_input(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, default="", multiline=True, dynamic_prompts=True, tooltip=tooltip)


def _conditioning_input(name: str, text: str) -> io.Input:
    return io.Conditioning.Input(
        name, optional=True,
        tooltip=f"Used instead of {text} as the model is told it, when a ControlNet or another node is to add to it: "
        f"encode the same text with CLIP Text Encode first. The text stays needed for the words' correspondence.",
    )  # fmt: skip


def _strength_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "source_guidance", default=1.0, min=0.0, max=30.0, step=0.1,
            tooltip="Strength of the source text (cfg). 1 is the method's own value. DDIM Inversion Sampler does not "
            "use it: it inverts without guidance.",
        ),
        io.Float.Input(
            "target_guidance", default=2.0, min=0.0, max=30.0, step=0.1,
            tooltip="Strength of the target text (cfg): 1 to 3 for LCM models, more for ordinary ones.",
        ),
        io.Float.Input(
            "cross_fraction", default=0.8, min=0.0, max=1.0, step=0.05,
            tooltip="Part of the steps in which words that both texts share look where they look in the "
            "source. Higher keeps the layout, lower lets words move things.",
        ),
        io.Float.Input(
            "self_fraction", default=0.8, min=0.0, max=1.0, step=0.05,
            tooltip="Part of the steps in which shapes are taken from the source (self-attention). Lower it "
            "for edits that change shapes.",
        ),
        io.Combo.Input(
            "attention", options=list(METHODS), default="unified",
            tooltip="unified: InfEdit's control. refine, replace: Prompt-to-Prompt for texts with words added "
            "or changed, and for texts of equally many words.",
        ),
    ]  # fmt: skip


class EditGuiderNode(io.ComfyNode):
    """Makes the GUIDER of an edit from a source text to a target text.

    It takes CLIP and texts, not conditionings alone: which word of one prompt is which word of the other is told by
    their tokens, and a conditioning no longer has any. Encoding them here as well leaves one place to type them; a
    conditioning can still be put in the place of each, so ControlNets and the like compose.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessEditGuider",
            display_name=GUIDER,
            category=_CATEGORY,
            description="Edits a photo from a text that describes it to a text that describes the result. Source and "
            "target are denoised together, and the target takes over as much of the source's attention as you say. "
            "For Virtual Inversion Sampler and DDIM Inversion Sampler in SamplerCustomAdvanced.",
            search_aliases=["InfEdit", "prompt to prompt", "P2P", "text edit", "attention control", "SPL"],
            inputs=[
                io.Model.Input("model", tooltip="The model to edit with: SD1.x, SD2.x or SDXL, LCM or ordinary."),
                io.Clip.Input("clip", tooltip="The CLIP that belongs to this model."),
                _text_input("source_text", "What the photo shows, in the same words as the target where possible."),
                _text_input("target_text", "What the edited picture shall show."),
                _text_input("negative_text", "What to keep out; usually empty."),
                *_strength_inputs(),
                _conditioning_input("source", "source_text"),
                _conditioning_input("target", "target_text"),
                _conditioning_input("negative", "negative_text"),
                io.String.Input(
                    "word_weights", default="", optional=True, advanced=True,
                    tooltip="Strengthen or weaken words of the target text, such as: snow=2, tree=0.5. Acts in the "
                    "steps of cross_fraction.",
                ),
                io.Boolean.Input(
                    "layout_branch", default=False, optional=True, advanced=True,
                    tooltip="Take the words' places from a third picture with the target's layout (InfEdit's "
                    "benchmark; unified only, half as slow again).",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="Connect to SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, source_text, target_text, negative_text, source_guidance, target_guidance,
                cross_fraction, self_fraction, attention, source=None, target=None, negative=None, word_weights="",
                layout_branch=False) -> io.NodeOutput:  # fmt: skip
        with named_errors(GUIDER):
            _check_clip(clip)
            settings = AttentionSettings(
                attention, cross_fraction, self_fraction, layout_branch, word_weights=_weights(word_weights)
            )
            given = {"source": (source, source_text), "target": (target, target_text)}
            empty = [name for name, (entry, text) in given.items() if entry is not None and not text.strip()]
            if empty and settings.acts:
                raise ValueError(
                    f"{empty[0]} is connected and {empty[0]}_text is empty: write the same text there, too. It tells "
                    "which word of one prompt is which of the other, which a conditioning no longer does."
                )
            prompts = (read_clip_prompt(clip, text) for text in (source_text, target_text))
            control = AttentionControl(settings, *prompts)
        guider = EditGuider(model, control, (source_guidance, target_guidance))
        guider.inner_set_conds({
            "positive": _encoded(clip, target_text) if target is None else target,
            "negative": _encoded(clip, negative_text) if negative is None else negative,
            "source": _encoded(clip, source_text) if source is None else source,
        })  # fmt: skip
        return io.NodeOutput(guider)


def _check_clip(clip):
    if clip is None:
        raise ValueError("the clip input is empty: connect the CLIP that belongs to this model.")


def _encoded(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _weights(text: str) -> dict[str, float]:
    """ "snow=2, tree=0.5" as a dictionary."""
    weights = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        word, _, value = entry.partition("=")
        try:
            weights[word.strip()] = float(value)
        except ValueError:
            raise ValueError(f"word_weights has the entry {entry!r}: write word=number, such as snow=2.") from None
    return weights


class VirtualInversionSampler(io.ComfyNode):
    """The SAMPLER of virtual inversion (InfEdit)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessVirtualInversionSampler",
            display_name="Virtual Inversion Sampler",
            category=_CATEGORY,
            description="Edits the photo in latent_image without inverting it first: source and target share all "
            "noise, and only the difference that their texts make is added to the photo. Needs Edit Guider.",
            search_aliases=["InfEdit", "DDCM", "inversion-free", "LCM edit"],
            inputs=[
                io.Float.Input(
                    "eta", default=1.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="How much of the noise is drawn anew in each step. 1 is the method's own value.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect to SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, eta=1.0) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_virtual_inversion, {"eta": eta}))


class DdimInversionSampler(io.ComfyNode):
    """The SAMPLER of DDIM inversion, the usual backbone of Prompt-to-Prompt on photos."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessDDIMInversionSampler",
            display_name="DDIM Inversion Sampler",
            category=_CATEGORY,
            description="Finds the noise that the photo in latent_image would have come from, then samples the target "
            "from it. For ordinary models (not LCM), with Edit Guider. The noise input is not used.",
            search_aliases=["DDIM inversion", "prompt to prompt", "P2P", "unsampling"],
            inputs=[
                io.Int.Input(
                    "iterations", default=1, min=1, max=50,
                    tooltip="Model calls for each inverted step. 1 is plain DDIM inversion; 2 to 5 follow the photo "
                    "more exactly.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="Connect to SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, iterations) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_ddim_inversion, {"iterations": iterations}))


def _advanced_mask_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "soft", default=False, optional=True, advanced=True,
            tooltip="Take the maps as they are instead of cutting them at the threshold.",
        ),
        io.Int.Input(
            "steps", default=15, min=1, max=100, optional=True, advanced=True,
            tooltip="At how many noise levels the model looks at the photo.",
        ),
        io.Int.Input(
            # By its name alone the page would draw it anew for every run, and all behind the mask would run again.
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, optional=True, advanced=True,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Seed of the noise that is put on the photo.",
        ),
        io.Boolean.Input(
            "suppress_background", default=True, optional=True, advanced=True,
            tooltip="Press down the weak, diffuse part of the mask, so that the background becomes clean.",
        ),
    ]  # fmt: skip


class EditMaskFromWords(io.ComfyNode):
    """A MASK of where a model sees words of a prompt in a photo."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessEditMask",
            display_name=_MASK,
            category="Likeness/mask",
            description="Finds words of a prompt in a photo by the model's own attention, and brings the mask to the "
            "photo's edges. For Structure Guidance, Structure Refine and inpainting.",
            search_aliases=["attention map", "word mask", "segment", "DAAM", "cross attention"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x, SD2.x, SDXL or Flux."),
                io.Clip.Input("clip", tooltip="The CLIP that belongs to this model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to this model."),
                io.Image.Input("image", tooltip="The photo in which the words are looked for."),
                _text_input("prompt", "What the photo shows."),
                io.String.Input(
                    "words", default="",
                    tooltip="Words of the prompt to look for, separated by commas or spaces; the mask covers all.",
                ),
                io.Float.Input(
                    "threshold", default=0.4, min=0.0, max=0.99, step=0.01,
                    tooltip="How strongly a place must belong to a word, as a part of the word's strongest place.",
                ),
                io.Boolean.Input("outside", default=False, tooltip="Give everything but the words instead."),
                *_advanced_mask_inputs(),
            ],
            outputs=[io.Mask.Output(tooltip="The mask at the size of the image, soft at its edges.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, vae, image, prompt, words, threshold, outside, soft=False, steps=15, seed=0,
                suppress_background=True) -> io.NodeOutput:  # fmt: skip
        with named_errors(_MASK):
            _check_clip(clip)
            if vae is None:
                raise ValueError("the vae input is empty: connect the VAE that belongs to this model.")
            wanted, read = split_words(words), read_clip_prompt(clip, prompt)
            for word in wanted:
                read.positions(word)
            picture = check_image(to_pipeline(image), "image")
            latent = vae.encode(picture.movedim(1, -1))
            _check_latent(latent, model)
            bar = comfy.utils.ProgressBar(steps)
            maps = attention_to_prompt(
                model, _encoded(clip, prompt), latent, steps, seed, lambda step, *_: bar.update_absolute(step + 1)
            )
            coarse = words_mask(maps, read, wanted, threshold, soft).to(image.device)
            guide = vae.vae_encode_crop_pixels(image[..., :3])
            mask = edge_mask([(coarse, to_pipeline(guide))], MaskUpsampling(suppress_background=suppress_background))
        mask = _uncropped(mask, picture.shape[-2:])
        return io.NodeOutput(1 - mask if outside else mask)


def _check_latent(latent: torch.Tensor, model):
    """``ValueError`` if the VAE is not the model's."""
    channels = model.get_model_object("latent_format").latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"the VAE makes latents of the shape {tuple(latent.shape)}, the model takes {channels} channels of a "
            "picture: connect the VAE that belongs to this model."
        )


def _uncropped(mask, size):
    """``[B, 1, h, w]`` of the central latent cells as ``[B, H, W]``: the border that was cut repeats its neighbour."""
    height, width = (want - have for want, have in zip(size, mask.shape[-2:], strict=True))
    padding = (width // 2, width - width // 2, height // 2, height - height // 2)
    return torch.nn.functional.pad(mask, padding, mode="replicate")[:, 0]
