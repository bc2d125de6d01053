"""Small stock pipelines of diffusers with random weights: what a base model in a folder looks like."""

import json

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LETTERS = [chr(code) for code in range(33, 127)]
VOCABULARY = [*LETTERS, *[letter + "</w>" for letter in LETTERS], "<|startoftext|>", "<|endoftext|>"]
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "timestep_spacing": "leading"}  # fmt: skip


def write_tokenizer(folder):
    """A CLIP tokenizer that knows single letters."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def text_encoder(kind=CLIPTextModel, act="quick_gelu", width=32):
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, projection_dim=24, hidden_act=act, bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
    )  # fmt: skip
    return kind(config).eval()


def unet(context: int, **options):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=context, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        sample_size=8, **options,
    )  # fmt: skip


PARTS = {"vae", "text_encoder", "tokenizer", "unet", "text_encoder_2", "tokenizer_2"}


def make_edit_pipeline(family: str, folder):
    """A small ``TextEditPipeline``."""
    from likeness.pipelines.spl.edit_pipeline import TextEditPipeline

    stock = make_pipeline(family, folder)
    stock.unet.eval()
    parts = {name: part for name, part in stock.components.items() if name in PARTS}
    return TextEditPipeline(**parts, scheduler=diffusers.DDIMScheduler.from_config(stock.scheduler.config))


def make_pipeline(family: str, folder):
    """A small stock pipeline of diffusers; SD2.x predicts velocity."""
    torch.manual_seed(0)
    vocabulary = write_tokenizer(folder / "letters")
    first = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77)
    padded = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77, pad_token="!")
    parts = {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(
            **SCHEDULE, prediction_type="v_prediction" if family == "sd2" else "epsilon"
        ),
    }  # fmt: skip
    if family == "sdxl":
        added = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True,
            "projection_class_embeddings_input_dim": 6 * 8 + 24, "transformer_layers_per_block": (1, 2),
        }  # fmt: skip
        return diffusers.StableDiffusionXLPipeline(
            **parts, unet=unet(32 + 40, **added), tokenizer=first, tokenizer_2=padded, text_encoder=text_encoder(),
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, "gelu", width=40),
        )  # fmt: skip
    linear = family == "sd2"
    return diffusers.StableDiffusionPipeline(
        **parts, unet=unet(32, use_linear_projection=linear), tokenizer=padded if linear else first,
        text_encoder=text_encoder(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
