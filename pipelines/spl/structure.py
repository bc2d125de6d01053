"""The structure loss, its gradient in closed form and its descent on one intensity plane.

L_SPL sees an image only through its intensity, so its gradient is the same in R, G and B: K steps are made on one
channel and the change is added to all three. With the local-linear coefficients held constant, as the authors do, and
a, b: S -> P, a', b': P -> S, the gradient of the sum over windows at pixel i is (paper, equation 5)

    2 sum_{k: i in w_k} (1/N_k) [ (P_i - a_k S_i - b_k) + a'_k (a'_k P_i + b'_k - S_i) ]
      = 2 [ P_i (U + C)_i - S_i A_i - B_i ],
    A = sum (a + a') / N,   B = sum (b - a' b') / N,   C = sum a'^2 / N,   U = sum 1 / N,

all four sums over the window around i. Since b - a'b' = mean(P) (1 + a'^2) - (a + a') mean(S), six window sums make an
iteration: of P, SP, P^2 and of the three coefficient planes. With a mask m, both images are m times the image and the
gradient gains a factor m. The image in -1..1 and the mean over three channels contribute 1/2 * 1/3 to the gradient and
1/2 to the step: together W_s / 12 of the gradient above, for an image of ``REFERENCE_PIXELS``.
"""

import torch

from ..filters import box_sum, window_count
from .settings import REFERENCE_PIXELS, StructureSettings


def intensity_change(
    image: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None, settings: StructureSettings, on_iteration=None
) -> torch.Tensor:
    """What K structure steps add to the intensity ``image``; all ``[B, 1, H, W]`` float32 in 0..1, on one device.

    Images go one after the other, so that a long batch needs no more memory than one. ``on_iteration()`` is called
    after every iteration of every image.
    """
    descend = _descend_on_cpu if image.device.type == "cpu" else descend_on_tensors
    masks = [None] * len(image) if mask is None else mask.split(1)
    pictures = zip(image.split(1), source.split(1), masks, strict=True)
    return torch.cat([descend(*planes, settings, on_iteration) for planes in pictures])


def _descend_on_cpu(image, source, mask, settings: StructureSettings, on_iteration) -> torch.Tensor:
    from .structure_cpu import descend

    planes = [None if plane is None else plane[0, 0].numpy() for plane in (image, source, mask)]
    change = descend(*planes, settings, torch.get_num_threads(), on_iteration)
    return torch.from_numpy(change)[None, None]


def descend_on_tensors(image, source, mask, settings: StructureSettings, on_iteration=None) -> torch.Tensor:
    """``intensity_change`` on tensors of any device, all images at once (about 35 planes of memory an image)."""
    if mask is not None:
        image, source = mask * image, mask * source
    # Any constant may be subtracted from both images; small values keep the digits of flat areas.
    center = source.mean(dim=(-2, -1), keepdim=True)
    source, plane = source - center, image - center
    radius = settings.radius
    inverse_count = 1 / window_count(plane.shape[-2:], radius, plane)
    inverse_count_sum = box_sum(inverse_count, radius)
    mean_source = box_sum(source, radius) * inverse_count
    variance = box_sum(source * source, radius) * inverse_count - mean_source**2
    inverse_variance = 1 / (variance + settings.epsilon)

    scale = settings.learning_rate * settings.structure_weight / (6 * REFERENCE_PIXELS)
    velocity, total = torch.zeros_like(plane), torch.zeros_like(plane)
    for _ in range(settings.iterations):
        sums = box_sum(torch.cat((plane, plane * source, plane * plane), dim=1), radius) * inverse_count
        mean, mean_product, mean_square = sums.split(1, dim=1)
        covariance = torch.addcmul(mean_product, mean, mean_source, value=-1)
        back = covariance / (torch.addcmul(mean_square, mean, mean, value=-1) + settings.epsilon)
        slopes = torch.addcmul(back, covariance, inverse_variance)
        back_squared = back * back
        offsets = torch.addcmul(torch.addcmul(mean, mean, back_squared), slopes, mean_source, value=-1)
        a, b, c = box_sum(torch.cat((slopes, offsets, back_squared), dim=1) * inverse_count, radius).split(1, dim=1)
        gradient = torch.addcmul((c + inverse_count_sum) * plane, source, a, value=-1) - b
        if mask is not None:
            gradient = gradient * mask
        velocity = torch.add(gradient, velocity, alpha=settings.momentum)
        total = total + velocity
        plane = torch.add(plane, velocity if mask is None else velocity * mask, alpha=-scale)
        if on_iteration is not None:
            on_iteration()
    return -scale * total
