"""LPIPS, by torchmetrics, on a backbone that the user has put in place: nothing is downloaded here."""

from pathlib import Path

import torch
from torch import Tensor

from ..optional import need

NETWORKS = ("alex", "vgg")
MIN_SIDE = 32  # pixels


class LPIPS:
    """Learned perceptual image patch similarity (Zhang et al. 2018), with its network loaded once.

    ``file``: torchvision's ImageNet weights of ``network``, "alex" (AlexNet, the authors' choice for scores) or "vgg"
    (VGG16); the linear layers on top come with torchmetrics. Raises ``ValueError`` for a missing or other file and
    ``ImportError`` without torchvision or torchmetrics.
    """

    def __init__(self, file: Path, network: str = "alex"):
        if network not in NETWORKS:
            raise ValueError(f"LPIPS has no network {network!r}: choose {' or '.join(NETWORKS)}.")
        if not Path(file).is_file():
            raise ValueError(f"LPIPS needs torchvision's ImageNet weights at {file}, and they are not there.")
        need("torchvision.models", "torchvision")
        # The public class takes no weights and would download its own.
        make = need("torchmetrics.functional.image.lpips", "torchmetrics")._LPIPS
        self.network = make(pretrained=True, net=network, pnet_rand=True, eval_mode=True).eval()
        backbone = self.network.net
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            backbone.load_state_dict(
                {name: weights["features." + name.split(".", 1)[1]] for name in backbone.state_dict()}
            )
        except Exception as error:
            raise ValueError(
                f"{file} does not hold torchvision's weights for LPIPS ({type(error).__name__}): get it again."
            ) from error

    @torch.no_grad()
    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance of two [B, 3, H, W] in 0..1, sides of 32 pixels or more: [B], 0 for identical pictures."""
        if image.shape != reference.shape or min(image.shape[-2:]) < MIN_SIDE:
            raise ValueError(
                f"pictures are {tuple(image.shape)} and {tuple(reference.shape)}: LPIPS compares equal shapes, with "
                f"sides of at least {MIN_SIDE} pixels."
            )
        self.network.to(image.device)
        return self.network(image.float(), reference.float().to(image.device), normalize=True).flatten()
