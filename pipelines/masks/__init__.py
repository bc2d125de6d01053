"""Masks of people and of what they wear.

``foreground``  people before their background by GrabCut, from face boxes or a rough mask; people told apart
``mask_rcnn``   people by torchvision's Mask R-CNN, where its weights are there
``face``, ``clothing``  parts of people
``operations``  what can be done to any mask
``upsampling``  coarse masks, such as attention maps, brought to the size and edges of a picture

Below them: ``body_prior`` (where a person is likely to be, from a face box), ``grabcut``, ``window`` (a part of a
picture at a bounded size), ``inputs`` (settings, and what is checked of input). Nothing here finds faces.
"""

from .clothing import clothing_masks
from .face import face_masks
from .foreground import foreground_masks, refine_mask, split_people
from .inputs import MaskSettings
from .mask_rcnn import RcnnSettings, ignore_below, load_mask_rcnn, rcnn_masks
from .operations import edge_band, fill_holes, keep_piece, remove_specks, soften
from .upsampling import MaskUpsampling, upsample_mask

__all__ = [
    "MaskSettings", "MaskUpsampling", "RcnnSettings", "clothing_masks", "edge_band", "face_masks", "fill_holes",
    "foreground_masks", "ignore_below", "keep_piece", "load_mask_rcnn", "rcnn_masks", "refine_mask", "remove_specks",
    "soften", "split_people", "upsample_mask",
]  # fmt: skip
