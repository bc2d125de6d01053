"""LPIPS, by torchmetrics, on a backbone that the user has put in place: nothing is downloaded here."""

from pathlib import Path

import torch
from torch import Tensor

from ..optional import need

# torchmetrics' names of the networks, and torchvision's of the weights they are made of.
NETWORKS = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def lpips(image: Tensor, reference: Tensor, network: str = "alex") -> Tensor:
    """Learned perceptual distance of two [B, 3, H, W] in 0..1, [B]; 0 for identical images (Zhang et al. 2018).

    The weights of the ImageNet classifier must lie in torch's hub folder. Raises ``ValueError`` naming the file where
    they do not, for an unknown network, and for sides below 32; ``ImportError`` without torchmetrics or torchvision.
    """
    return LPIPS(network)(image, reference)


class LPIPS:
    """``lpips`` with the network loaded once."""

    def __init__(self, network: str = "alex"):
        need("torchvision.models", "torchvision")
        metric = need("torchmetrics.image.lpip", "torchmetrics").LearnedPerceptualImagePatchSimilarity
        _check_weights(backbone_file(network))
        self.metric = metric(net_type=network, normalize=True)

    @torch.no_grad()
    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        if image.shape != reference.shape or min(image.shape[-2:]) < 32:
            raise ValueError(
                f"pictures are {tuple(image.shape)} and {tuple(reference.shape)}: LPIPS compares equal shapes, with "
                "sides of at least 32 pixels."
            )
        self.metric.to(image.device)
        # One by one: torchmetrics gives the mean of a batch.
        pairs = zip(image.float(), reference.float().to(image.device), strict=True)
        values = [self.metric(one[None], other[None]) for one, other in pairs]
        self.metric.reset()
        return torch.stack(values).reshape(-1)


def backbone_file(network: str) -> Path:
    """Where torchvision looks for the weights of a network of ``NETWORKS``."""
    if network not in NETWORKS:
        raise ValueError(f"LPIPS has no network {network!r}: choose {', '.join(NETWORKS)}.")
    weights = getattr(need("torchvision.models", "torchvision"), NETWORKS[network]).DEFAULT
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]


def _check_weights(file: Path) -> None:
    """torchvision would download them, and would unpickle anything: what passes here does neither."""
    if not file.is_file():
        raise ValueError(f"LPIPS needs torchvision's weights {file.name}, and they are not there: put them at {file}.")
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{file} holds no weights ({type(error).__name__}): get it again from torchvision.") from error
