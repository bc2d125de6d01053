"""IDetail nodes: relight a portrait and replace its background from a prompt, and keep the person."""

import logging
from pathlib import Path

import comfy.lora
import comfy.sd
import comfy.utils
import folder_paths
import node_helpers
import torch
from comfy_api.latest import io

from ..pipelines.idetail.adapter import CONV_IN, SHIPPED, read_adapter, split_adapter
from ..pipelines.idetail.conditioning import ORDERS, latent_mask
from ..pipelines.idetail.prompts import EFFECTS, PLACEHOLDER, TARGET_PROMPTS, relight_prompt
from ..pipelines.images import check_image, check_mask, match_batch
from .convert import named_errors, to_pipeline
from .hooks.relight_photo import keep_photo

_CATEGORY = "Likeness/IDetail"
_CONDITIONING, _LOADER, _PROMPT = "Relight Conditioning", "Relight LoRA Loader", "Relight Prompt"
_FIRST = "diffusion_model.input_blocks.0.0.weight"
EMBEDDED = "for the embedded portrait model"
NONE, TRAINED, ALL = "none: placeholder alone", "all 7 trained effects, a list", "all 15 effects, a list"


class RelightConditioning(io.ComfyNode):
    """Gives the sampler the photo and who is to stay in it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessRelightConditioning",
            display_name=_CONDITIONING,
            category=_CATEGORY,
            description="Shows a relighting model the photo to relight and the people to keep. For a MODEL with a "
            "file of IDetail (Relight LoRA Loader); the prompt says the new light and background.",
            search_aliases=["IDetail", "relight", "IC-Light", "virtual background", "studio light", "noise concat"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL behind Relight LoRA Loader; the one that samples."),
                io.Conditioning.Input("positive", tooltip="The prompt, encoded. A batch of prompts: a picture each."),
                io.Conditioning.Input("negative", tooltip="What to keep out, encoded; usually an empty text."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to this model."),
                io.Image.Input(
                    "image", tooltip="The photo, or a batch. Cropped to whole latent cells, as VAE Encode does it."
                ),
                io.Mask.Input(
                    "mask", tooltip="The people who are to stay, white: from Foreground Mask, for example. One mask, "
                    "or one for each photo; any size of the photo's shape.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with photo and mask."),
                io.Conditioning.Output(display_name="negative", tooltip="The same for what to keep out."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty latents of the photo's size, for a denoise of 1. To stay nearer to the photo with "
                    "less denoise, give the sampler the photo's latent from VAE Encode instead.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, vae, image, mask) -> io.NodeOutput:
        with named_errors(_CONDITIONING):
            check_widened(model)
            source, foreground = encoded_photo(model, vae, image, mask)
            rows = {len(tensor) for tensor, _ in (*positive, *negative)}
            batch = max(len(source), len(foreground), *rows)
            for count in rows:
                if batch % count:
                    raise ValueError(
                        f"{count} prompts do not fit a batch of {batch} photos or masks: give 1 or {batch}."
                    )
            source, foreground = match_batch(source, batch, "image"), match_batch(foreground, batch, "mask")
        added = {"noise_concat": torch.cat([foreground, source], 1)}
        positive, negative = (node_helpers.conditioning_set_values(each, added) for each in (positive, negative))
        return io.NodeOutput(positive, negative, {"samples": torch.zeros_like(source)})


def check_widened(model) -> None:
    """Refuse a MODEL whose first convolution does not take noise, mask and photo."""
    have, wanted = channels(model)
    if have != wanted:
        raise ValueError(
            f"the MODEL takes {have} channels, relighting needs {wanted}: put Relight LoRA Loader before it, or Load "
            "LoRA with the whole file of idetail-lora (not the ..._lora one), at a strength other than 0."
        )


def channels(model) -> tuple[int, int]:
    """How many channels the first convolution of a MODEL takes, and how many relighting needs."""
    latent = model.get_model_object("latent_format").latent_channels
    # The weight itself may be a widened one at this moment, through another MODEL of the same checkpoint.
    base = torch.empty(1, model.model.model_config.unet_config.get("in_channels") or 0, device="meta")
    return comfy.lora.calculate_shape(model.patches.get(_FIRST, ()), base, _FIRST)[1], 2 * latent + 1


def encoded_photo(model, vae, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents [P, C, h, w] as the MODEL scales them, masks [M, 1, h, w] of the same size)."""
    if vae is None:
        raise ValueError("the vae input is empty: connect the VAE that belongs to this model.")
    picture = check_image(to_pipeline(image), "image", vae.spacial_compression_encode()).movedim(1, -1)
    warn_of_nobody(mask)
    foreground = check_mask(mask, tuple(image.shape[1:3]), len(mask) if mask.ndim > 2 else 1)
    cropped = vae.vae_encode_crop_pixels(foreground.expand(-1, 3, -1, -1).movedim(1, -1))[..., :1]
    latent, form = vae.encode(picture), model.get_model_object("latent_format")
    if latent.ndim != 4 or latent.shape[1] != form.latent_channels:
        raise ValueError(
            f"the VAE makes latents of the shape {tuple(latent.shape)}, the model samples {form.latent_channels} "
            "channels: connect the VAE that belongs to this model."
        )
    # ComfyUI scales the latent it samples, but not what is put beside it.
    source = form.process_in(latent.float())
    return source, latent_mask(to_pipeline(cropped), source.shape[-2:]).to(source)


def warn_of_nobody(mask: torch.Tensor) -> None:
    """A black mask keeps nobody: an error if all are, else told in the log."""
    each = mask.flatten(0, -3) if mask.ndim > 2 else mask[None]
    empty = [number for number, one in enumerate(each, 1) if not one.any()]
    if len(empty) == len(each):
        raise ValueError(
            "the mask is black, so nobody would be kept: connect Foreground Mask, or a mask that is white where the "
            "people are (the mask of Load Image is white where a picture is transparent, and black without that)."
        )
    for number in empty:
        logging.warning("%s: mask %d is black: nobody of that picture will be kept.", _CONDITIONING, number)


class RelightLoraLoader(io.ComfyNode):
    """Applies a trained file of IDetail."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessRelightLoraLoader",
            display_name=_LOADER,
            category=_CATEGORY,
            description="Makes a text-to-image MODEL one that relights: applies a file that idetail-lora trained, its "
            "LoRA and its wider first convolution at separate strengths. Checks that the file is one of IDetail and "
            "fits the MODEL.",
            search_aliases=["IDetail", "relight", "load lora", "IC-Light"],
            inputs=[
                io.Model.Input("model", tooltip="The base model that the file was trained on."),
                io.Combo.Input(
                    "file", options=adapter_names(),
                    tooltip=f"A file of idetail-lora in ComfyUI's loras folder, or \"{EMBEDDED}\", which comes with "
                    "this pack.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.01,
                    tooltip="Strength of the LoRA. Lower keeps more of the base model's manner and less of the person.",
                ),
                io.Float.Input(
                    "conv_in_strength", default=1.0, min=-10.0, max=10.0, step=0.01, optional=True, advanced=True,
                    tooltip="Strength of the first convolution, which sees the photo. Leave it at 1: half a first "
                    "convolution is not half an effect.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL that relights; for Relight Conditioning and the sampler.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file, **inputs):
        written = adapter_path(file).stat()  # a training goes on, and its file keeps its name
        return written.st_mtime_ns, written.st_size

    @classmethod
    def execute(cls, model, file, strength, conv_in_strength=1.0) -> io.NodeOutput:
        with named_errors(_LOADER):
            tensors, order = read_adapter(adapter_path(file))
            if order != ORDERS[0]:
                raise ValueError(
                    f"{file} was trained with the channels {order!r}, ComfyUI's are {ORDERS[0]!r}: train it with that "
                    "--order, or use the file with RelightPipeline."
                )
            check_fits(model, file, tensors)
        first, lora = split_adapter(tensors)
        if first and _FIRST in model.patches:
            logging.warning(
                "%s: the first convolution of this MODEL is changed already, and the changes add up: let the strengths "
                "of all first convolutions add up to 1.", _LOADER,
            )  # fmt: skip
        for part, amount in ((lora, strength), (first, conv_in_strength)):
            if part:
                model, _ = comfy.sd.load_lora_for_models(model, None, part, amount, 0)
        have, wanted = channels(model)
        if have == wanted:
            keep_photo(model)
        return io.NodeOutput(model)


def adapter_names() -> list[str]:
    """The files to choose from, the one that comes with the pack first."""
    return [*([EMBEDDED] if SHIPPED.is_file() else []), *folder_paths.get_filename_list("loras")]


def adapter_path(file: str) -> Path:
    return SHIPPED if file == EMBEDDED else Path(folder_paths.get_full_path_or_raise("loras", file))


def check_fits(model, file: str, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse a file of another base: ComfyUI itself would only log what it leaves out."""
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    latent = model.get_model_object("latent_format").latent_channels
    have, channels = model.model.model_config.unet_config.get("in_channels"), 2 * latent + 1
    if have != latent and any(name.startswith(CONV_IN) for name in tensors):
        raise ValueError(
            f"the MODEL takes {have} channels by itself, an inpainting or edit model: load the text-to-image model "
            f"that {file} was trained on."
        )
    for layer in sorted({name.partition(".")[0] for name in tensors}):
        up, down = (tensors.get(f"{layer}.lora_{part}.weight") for part in ("up", "down"))
        place = places.get(layer)
        weight = comfy.utils.get_attr(model.model, place) if isinstance(place, str) else None
        if weight is not None and up is not None and down is not None:
            # Another MODEL of the same checkpoint may have widened the first convolution at this moment.
            inputs = channels if layer == CONV_IN else weight.shape[1]
            if (len(up), down[0].numel()) == (len(weight), inputs * weight.shape[2:].numel()):
                continue
        raise ValueError(
            f"{file} was trained on another base model: its {layer} does not fit this MODEL. Load the checkpoint that "
            "it was trained on."
        )


class RelightPrompt(io.ComfyNode):
    """Writes the prompt of a light."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessRelightPrompt",
            display_name=_PROMPT,
            category=_CATEGORY,
            description="Writes a prompt for relighting: one of IDetail's 15 effects, with the people named by a "
            "placeholder, and words of your own after it.",
            search_aliases=["IDetail", "relight", "lighting prompt", "background prompt"],
            inputs=[
                io.Combo.Input(
                    "effect", options=[*EFFECTS, NONE, TRAINED, ALL],
                    tooltip="Light and background; IDetail was trained on the first 7. With a list the rest of the "
                    "graph runs once for each; switch Keep Best's each_batch on then.",
                ),
                io.Int.Input("people", default=1, min=1, max=8, tooltip="How many people the photo shows."),
                io.String.Input(
                    "text", default="", multiline=True, dynamic_prompts=True,
                    tooltip="Put after the effect, or after the placeholder alone: your own light and background.",
                ),
                io.String.Input(
                    "placeholder", default=PLACEHOLDER, optional=True, advanced=True,
                    tooltip="The word that stands for the person of the photo. The method trains with \"<c>\".",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt", is_output_list=True,
                                      tooltip="The prompt, for CLIP Text Encode; a list where all effects are asked.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, effect, people, text, placeholder=PLACEHOLDER) -> io.NodeOutput:
        with named_errors(_PROMPT):
            if not placeholder.strip():
                raise ValueError(f"the placeholder is empty: write the word for the person, such as {PLACEHOLDER}.")
            names = {NONE: [""], TRAINED: [prompt.name for prompt in TARGET_PROMPTS], ALL: list(EFFECTS)}
            chosen = names.get(effect, [effect])
            return io.NodeOutput([relight_prompt(name, people, text, placeholder.strip()) for name in chosen])
