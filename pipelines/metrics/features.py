"""What all scores on features share: the check of their input, and the cosine scores of pairs of pictures.

Features are vectors [N, D] of one network; any real dtype on any device. Scores are computed in float64.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate


def check_features(features: Tensor, name: str, least: int, why: str) -> Tensor:
    """``features`` in float64 if they are finite [N, D] with N of at least ``least``; else ``ValueError``.

    ``why``: the end of the sentence "N is 3, ... needs at least 5 ...".
    """
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"{name} has the shape {tuple(features.shape)}: give features [N, D], a row each picture.")
    if len(features) < least:
        raise ValueError(f"{name} has {len(features)} samples, {why} needs at least {least}: give more pictures.")
    broken = int((~torch.isfinite(features).all(1)).sum())
    if broken:
        raise ValueError(f"{name} has NaN or infinite features in {broken} of {len(features)} rows: leave these out.")
    return features.double()


def check_two_sets(one: Tensor, other: Tensor, least: int, why: str) -> tuple[Tensor, Tensor]:
    """Both in float64, on the device of ``one``; ``ValueError`` also where their widths differ."""
    one, other = check_features(one, "the first set", least, why), check_features(other, "the second set", least, why)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"the sets have features of {one.shape[1]} and {other.shape[1]} numbers: take both from the same network."
        )
    return one, other.to(one.device)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of each row of [B, D] with the row of [B, D] (or [1, D]) beside it: [B] in -1..1.

    NaN where a row is NaN, such as that of a picture without a face. Raises ``ValueError`` where shapes do not fit.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"features are {tuple(one.shape)} and {tuple(other.shape)}: give [B, D] of the same network.")
    if len(one) != len(other) and 1 not in (len(one), len(other)):
        raise ValueError(f"features are batches of {len(one)} and {len(other)}: give equal ones, or one against many.")
    # Rounding alone leads beyond 1, and to scores of -0.0000.
    return cosine_similarity(one.double(), other.to(one.device).double(), dim=1).clamp(-1, 1)


def clip_score(pictures: Tensor, texts: Tensor) -> Tensor:
    """How well pictures follow their prompts: cosine of CLIP's image and text features [B, D], [B]; higher is better.

    IDetail, appendix B, equation 7. torchmetrics and Hessel et al. 2021 give 100 times this, and 0 where it is less.
    """
    return cosines(pictures, texts)


def clip_directional(before: Tensor, after: Tensor, source_texts: Tensor, texts: Tensor) -> Tensor:
    """Cosine between the change of the picture and the change of the prompt, in CLIP's space: [B]; higher is better.

    Gal et al. 2022 (StyleGAN-NADA), equation 3; the features of all four are taken as unit vectors first. NaN where
    picture or prompt did not change at all: there is no direction then.
    """
    before, after, source_texts, texts = (
        torch.nn.functional.normalize(x.double(), dim=1) for x in (before, after, source_texts, texts)
    )
    moved, asked = after - before, texts - source_texts
    still = (moved.norm(dim=1) < 1e-6) | (asked.norm(dim=1) < 1e-6)
    return cosines(moved, asked).masked_fill(still, torch.nan)


def face_distance(one: Tensor, other: Tensor) -> Tensor:
    """The Face ID score: 1 - cosine of the face embeddings [B, D] of one embedder, [B] in 0..2; 0 is the same face.

    IDetail, appendix B, equation 8 (there of FaceNet).
    """
    return 1 - cosines(one, other)


def clothing_distance(one: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor) -> Tensor:
    """The Clothing score: 1 - cosine of the mean features of the clothes, [B] in 0..2; 0 is the same.

    IDetail, appendix B, equation 9. The paper leaves layer, masking and pooling open: here feature maps [B, C, h, w]
    are averaged over each mask [B, 1, H, W] in 0..1 (foreground minus face), shrunk to their size. NaN where a mask
    is empty. Raises ``ValueError`` where shapes do not fit.
    """
    return 1 - cosines(masked_mean(one, mask), masked_mean(other, other_mask))


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, C] of a feature map [B, C, h, w] with the mask [B, 1, H, W] as weight; NaN where the mask is empty."""
    if features.ndim != 4 or mask.ndim != 4 or len(mask) not in (1, len(features)):
        shapes = f"features are {tuple(features.shape)}, mask {tuple(mask.shape)}"
        raise ValueError(f"{shapes}: give [B, C, h, w] and [B, 1, H, W].")
    weight = interpolate(mask.double(), size=features.shape[-2:], mode="area").to(features.device)
    return (features.double() * weight).sum((2, 3)) / weight.sum((2, 3))
