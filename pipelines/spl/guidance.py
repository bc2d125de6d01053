"""Structure preservation inside the sampling loop, for any host and any sampler.

At the late steps of sampling the predicted clean latent is decoded, pulled towards the structure of a reference picture
and encoded back (paper, section 3; authors' code). The host supplies decoding and encoding and calls ``refine`` on
every prediction; what belongs to which step is told from the noise level alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn.functional import adaptive_max_pool2d

from ..images import match_batch, match_size
from .optimise import prepare_mask, preserve_structure
from .settings import StructureSettings

# Samplers that convert noise levels to time and back return them with rounding; steps are much further apart.
_SIGMA_TOLERANCE = 1e-4
# A mask below this looks black: the tails of soft ones, which reach over the whole picture, keep nothing.
BLACK = 0.02


def current_step(sigma: float, sigmas: Sequence[float]) -> int:
    """Index of the schedule step that an evaluation at ``sigma`` belongs to: sigmas[i] >= sigma > sigmas[i+1].

    ``sigmas`` falls from the first noise level to the last, T+1 values for T steps. Levels above the first belong to
    step 0, levels at or below the last to the final step.
    """
    above = sum(1 for level in sigmas[1:-1] if sigma <= level * (1 + _SIGMA_TOLERANCE))
    return min(above, len(sigmas) - 2)


def first_refined_step(steps: int, start: float) -> int:
    """First step i with i / steps >= start (authors' code); always at least the last step.

    The authors refine nothing when the schedule is so short that no step reaches ``start``; a person who connected the
    guidance expects it to act.
    """
    if not 0 <= start <= 1:
        raise ValueError(f"start is {start}: it is a fraction of the steps, between 0 and 1.")
    return min(math.ceil(start * steps - 1e-9), steps - 1)


class StructureGuidance:
    """Structure preservation for one sampling run.

    reference: ``[N, 3, H, W]`` in 0..1, the VAE round trip of the source (paper; the source itself would make the
        descent fight the VAE's own losses): one picture for all, or as many as are sampled, or the frames of one clip.
    sigmas: the schedule of this run, T+1 falling noise levels.
    mask: region to keep, ``[N, H, W]``, or None for all of it.
    preserve: what pulls a picture to the reference; has the arguments of ``preserve_structure``.
    refinements: how many were made so far; 0 after a run means that the sampler never came near the guided steps.
    """

    def __init__(
        self,
        reference: torch.Tensor,
        sigmas: Sequence[float],
        settings: StructureSettings,
        start: float = 0.8,
        mask: torch.Tensor | None = None,
        preserve: Callable = preserve_structure,
    ):
        self.reference, self.settings, self.mask, self.preserve = reference, settings, mask, preserve
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.first_step = first_refined_step(len(self.sigmas) - 1, start)
        self.refinements = 0
        self._last_step: int | None = None
        self._correction: torch.Tensor | None = None

    def wants(self, sigma: float) -> bool:
        """Whether a prediction made at noise level ``sigma`` is to be refined."""
        return current_step(sigma, self.sigmas) >= self.first_step

    def refine(
        self,
        x0: torch.Tensor,
        sigma: float,
        decode: Callable[[torch.Tensor], torch.Tensor],
        encode: Callable[[torch.Tensor], torch.Tensor],
        on_iteration: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Return the clean latent ``x0`` of an evaluation at ``sigma`` with the reference's structure.

        ``decode`` maps a latent to images ``[B, 3, H, W]`` in 0..1, ``encode`` back to a latent of ``x0``'s shape. One
        refinement is made a step: samplers that evaluate several times in a step get its correction each time. Only in
        the final step every evaluation is refined, because the last of them is the picture.
        """
        step = current_step(sigma, self.sigmas)
        if step < self.first_step:
            return x0
        if step != self._last_step or step == len(self.sigmas) - 2:
            image = _finite(decode(x0), "decoding").clamp(0, 1)
            self._fit_to(image)
            refined = self.preserve(image, self.reference, self.mask, self.settings, on_iteration)
            self._correction = (_finite(encode(refined), "encoding").to(x0) - x0) * self._region(x0)
            self._last_step = step
            self.refinements += 1
        return x0 + self._correction

    def _fit_to(self, image: torch.Tensor) -> None:
        """Bring reference and mask to the size and number of the sampled pictures; done by the first refinement."""
        count, size = image.shape[0], tuple(image.shape[-2:])
        reference = match_size(self.reference, size, "source image", "sampled picture")
        self.reference = match_batch(reference, count, "source image")
        if self.mask is not None:
            self.mask = prepare_mask(self.mask, size, count, self.settings.mask_dilation)
            self.settings = replace(self.settings, mask_dilation=0)

    def _region(self, x0: torch.Tensor) -> torch.Tensor | float:
        """Latent cells that the mask touches visibly, 0 or 1 to multiply the correction of ``x0`` with.

        Ours: the authors encode the whole picture again, which also sends the free part through the VAE.
        """
        if self.mask is None:
            return 1.0
        cells = (adaptive_max_pool2d(self.mask, tuple(x0.shape[-2:])) > BLACK).to(x0)
        # The frames of a clip share its latents: a cell counts if any of the frames is to be kept there.
        cells = cells.reshape(x0.shape[0], -1, *x0.shape[-2:]).amax(dim=1)
        return cells.reshape(x0.shape[0], *[1] * (x0.ndim - 3), *x0.shape[-2:])


def _finite(values: torch.Tensor, action: str) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(
            f"the VAE returned NaN or infinite values while {action}: run it in float32 (ComfyUI: --fp32-vae), or use "
            "a VAE made for half precision."
        )
    return values
