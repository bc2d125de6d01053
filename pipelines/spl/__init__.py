"""SPL: structure-preserving image editing with a bidirectional local-linear loss (WACV 2026).

An edit keeps the source's structure where, in every small window, the edited intensity is an affine function of the
source intensity and the other way round. That is a loss (``losses``), its descent is a fast image-space optimiser
(``optimise``), and the optimiser is used twice: inside the sampling loop on the decoded prediction of the clean image
(``guidance``; the reference is the source's VAE round trip), and once more on the finished picture (the reference is
the source itself).

Read in this order: ``settings``, ``losses``, ``oracle`` (the paper's algorithm, plainly), ``optimise``, ``structure``
and ``structure_cpu`` (closed-form gradient), ``chroma`` (all colour iterations at once), ``guidance``, ``pipeline``.

What is edited *towards* is told by two prompts: ``inversion`` (where the edit starts), ``prompts`` (how their tokens
correspond), ``attention_control`` (what of the source's attention is kept), ``word_masks`` (where a word is seen),
``unet_control`` (all of it on a UNet of diffusers), ``edit_pipeline``.
"""

from .losses import color_loss, structure_loss, structure_map
from .optimise import preserve_structure
from .settings import StructureSettings

__all__ = ["StructureSettings", "color_loss", "preserve_structure", "structure_loss", "structure_map"]
