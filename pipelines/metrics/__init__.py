"""Scores that say how alike an image and its reference are.

``ssim``  structural similarity, Wang et al. 2004: 1 is identical
``gmsd``  gradient magnitude similarity deviation, Xue et al. 2014: 0 is identical, larger is worse
``fsim``  feature similarity of the luminance, Zhang et al. 2011: 1 is identical

Each takes an image and a reference, float tensors ``[B, 3, H, W]`` in 0..1 of one shape, and returns one float32 score
per pair, ``[B]``, on the device of the image. The scores are symmetric and carry no gradient. ``ssim`` needs
scikit-image, which is imported when it is called.

Data flow: ``similarity`` holds the three scores; the phase congruency maps of ``fsim`` come from ``phase_congruency``.
"""

from .similarity import fsim, gmsd, ssim

__all__ = ["fsim", "gmsd", "ssim"]
