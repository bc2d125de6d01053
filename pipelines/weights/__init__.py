"""Base models from files: the parts of a Stable-Diffusion-family model, loaded offline and checked.

``load_base_model`` takes a diffusers folder or a single-file safetensors checkpoint (the layout ComfyUI loads) of
SD1.x, SD2.x, SDXL or KOALA, and gives a ``BaseModel``: UNet, VAE, text encoders, tokenizers and the noise schedule it
was trained with. Nothing is downloaded, no pickle is opened, and no weight is ever left at a random value.

Order of reading: ``base_model`` (what a caller gets), ``diffusers_folder`` and ``single_file`` (the two forms it is
read from), ``architectures`` (what the shapes of a checkpoint's tensors say), ``checks``.
"""

from .base_model import PARTS, BaseModel, load_base_model
from .checks import model_hash

__all__ = ["PARTS", "BaseModel", "load_base_model", "model_hash"]
