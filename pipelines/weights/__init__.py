"""Weights: base models from files, published checkpoints, and where external files come from.

``load_base_model`` takes a diffusers folder or a single-file safetensors checkpoint (the layout ComfyUI loads) of
SD1.x, SD2.x, SDXL or KOALA, and gives a ``BaseModel``: UNet, VAE, text encoders, tokenizers and the noise schedule it
was trained with. It downloads nothing, opens no pickle, and leaves no weight at a random value.

Order of reading: ``base_model`` (what a caller gets), ``diffusers_folder`` and ``single_file`` (the two forms it is
read from), ``architectures`` (what the shapes of a checkpoint's tensors say), ``checks``. Apart from these:
``published`` (the methods' own checkpoints by exact names and shapes, from ``tensors``, which reads pickles as data
only), ``manifest`` (what external files there are) and ``download``.
"""

from .base_model import PARTS, BaseModel, load_base_model
from .checks import model_hash

__all__ = ["PARTS", "BaseModel", "load_base_model", "model_hash"]
