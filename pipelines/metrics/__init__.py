"""Scores that say how alike pictures are, or sets of pictures, as pure functions on tensors.

Of two pictures, ``[B, 3, H, W]`` in 0..1 of one shape, one float32 score each pair, ``[B]``, without gradient:
``psnr``   peak signal-to-noise ratio in dB: larger is better
``ssim``   structural similarity, Wang et al. 2004: 1 is identical (needs scikit-image)
``gmsd``   gradient magnitude similarity deviation, Xue et al. 2014: 0 is identical, larger is worse
``fsim``   feature similarity of the luminance, Zhang et al. 2011: 1 is identical
``LPIPS``  learned perceptual distance, Zhang et al. 2018: 0 is identical (needs torchvision, torchmetrics, weights)

Of the features of two pictures or texts, ``[B, D]``: ``clip_score``, ``clip_directional``, ``face_distance``,
``clothing_distance``. Of two sets of features, ``[N, D]`` and ``[M, D]``: ``frechet_distance``, ``kernel_distance``
(MMD), ``kernel_inception_distance`` (KID), ``density_coverage``, ``tsne_divergence``. Of faces with the number of
their person: ``class_similarities``, ``pair_similarities``, ``verify``. Where features come from is not known here.

``similarity``, ``phase_congruency``, ``perceptual``  pictures
``features``                                          pairs of features, and the check of all features
``frechet``, ``kernel``, ``neighbours``, ``projection``  sets of features
``verification``                                      faces
"""

from .features import clip_directional, clip_score, clothing_distance, cosines, face_distance
from .frechet import frechet_distance
from .kernel import KernelDistance, kernel_distance, kernel_inception_distance
from .neighbours import DensityCoverage, density_coverage
from .perceptual import LPIPS
from .projection import Projection, jensen_shannon, tsne_divergence
from .similarity import fsim, gmsd, psnr, ssim
from .verification import ClassSimilarity, Verification, class_similarities, pair_similarities, verify

__all__ = [
    "LPIPS", "ClassSimilarity", "DensityCoverage", "KernelDistance", "Projection", "Verification",
    "class_similarities", "clip_directional", "clip_score", "clothing_distance", "cosines", "density_coverage",
    "face_distance", "frechet_distance", "fsim", "gmsd", "jensen_shannon", "kernel_distance",
    "kernel_inception_distance", "pair_similarities", "psnr", "ssim", "tsne_divergence", "verify",
]  # fmt: skip
