"""Region masks: bringing a coarse mask, such as a cross-attention map, to the edges of a full-size picture."""

from .upsampling import MaskUpsampling, upsample_mask

__all__ = ["MaskUpsampling", "upsample_mask"]
