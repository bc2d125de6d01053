"""Phase congruency: how far the waves that make up an image are in step at a pixel, whatever their contrast.

Zhang, Zhang, Mou and Zhang 2011, section II-A, after Kovesi 1999 ("Image features from phase congruency"), whose code
the authors of FSIM use with the constants below. A bank of log-Gabor filters splits the image by scale n and
orientation j into complex responses r_nj, with the amplitude A_nj = |r_nj| and the phase of the wave as their angle.
"""

import math

import torch

SCALES = 4
ORIENTATIONS = 4
SHORTEST_WAVELENGTH = 6  # pixels
WAVELENGTH_RATIO = 2  # between neighbouring scales
# Spread of a filter around its centre frequency, as a ratio to it (sigma_f) ...
BANDWIDTH = 0.55
# ... and around its orientation, in radians: the spacing of the orientations over delta_theta = 1.2.
ANGULAR_SPREAD = math.pi / ORIENTATIONS / 1.2
# No filter may reach the corners of the spectrum, where orientations are sampled unevenly: a Butterworth low-pass.
CUTOFF = 0.45  # cycles per pixel
SHARPNESS = 15
NOISE_DEVIATIONS = 2.0  # k: energy below the mean of the noise plus k standard deviations is noise
NOISE_OVERESTIMATE = 1.7  # Kovesi's empirical correction of the noise threshold for this measure of energy


def phase_congruency(plane: torch.Tensor) -> torch.Tensor:
    """Phase congruency PC_2D of a grey ``plane`` ``[B, 1, H, W]`` in grey levels: same shape, in 0..1.

    The energy E_j over all orientations, as a share of the sum of all amplitudes A_nj. Both sides must be at least 2.
    """
    # No filter passes the mean. Taking it out first keeps its rounding from looking like the structure of a flat image.
    plane = plane - plane.mean(dim=(-2, -1), keepdim=True)
    spectrum = torch.fft.fft2(plane)
    energy, amplitude = torch.zeros_like(plane), torch.zeros_like(plane)
    # One orientation at a time: the responses to the whole bank would hold 32 planes.
    for filters in log_gabor_bank(plane.shape[-2:], plane.device):
        responses = torch.fft.ifft2(spectrum * filters)
        threshold = noise_threshold(responses[:, :1], filters)
        energy += (phase_energy(responses) - threshold).clamp_min(0)
        amplitude += responses.abs().sum(dim=1, keepdim=True)
    return energy / (amplitude + torch.finfo(plane.dtype).eps)


def log_gabor_bank(size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Log-Gabor filters for a spectrum of ``size`` (H, W), zero frequency first: ``[ORIENTATIONS, SCALES, H, W]``.

    G_2 of section II-A: a Gaussian in the logarithm of the frequency times a Gaussian in the angle. Each filter covers
    one half of the spectrum, so its response is complex.
    """
    down, right = (_frequencies(length, device) for length in size)
    frequency = torch.hypot(down[:, None], right)
    frequency[0, 0] = 1  # its logarithm must be finite; the filters are zero there
    # Measured from the vertical, as piq does; it matters only at the highest frequency of an even side.
    angle = torch.atan2(-right, down[:, None])

    centres = torch.arange(ORIENTATIONS, device=device)[:, None, None] * math.pi / ORIENTATIONS
    distance = torch.remainder(angle - centres + math.pi, 2 * math.pi) - math.pi
    angular = torch.exp(-(distance**2) / (2 * ANGULAR_SPREAD**2))

    wavelengths = SHORTEST_WAVELENGTH * WAVELENGTH_RATIO ** torch.arange(SCALES, device=device)[:, None, None]
    radial = torch.exp(-(torch.log(frequency * wavelengths) ** 2) / (2 * math.log(BANDWIDTH) ** 2))
    radial = radial / (1 + (frequency / CUTOFF) ** (2 * SHARPNESS))
    radial[:, 0, 0] = 0
    return angular[:, None] * radial


def phase_energy(responses: torch.Tensor) -> torch.Tensor:
    """Local energy E_j of one orientation ``[B, SCALES, H, W]`` (complex): ``[B, 1, H, W]``, can be negative.

    Kovesi 1999: the sum over scales of A_n (cos d - |sin d|), d the deviation of a phase from the mean phase.
    """
    total = responses.sum(dim=1, keepdim=True)
    mean_direction = total / (total.abs() + torch.finfo(total.dtype).eps)
    aligned = responses * mean_direction.conj()
    return (aligned.real - aligned.imag.abs()).sum(dim=1, keepdim=True)


def noise_threshold(finest: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Energy ``[B, 1, 1, 1]`` that Gaussian noise alone would reach in one orientation (Kovesi 1999).

    ``finest`` ``[B, 1, H, W]`` is the response at the smallest scale, taken to be mostly noise; ``filters`` is
    ``[SCALES, H, W]``. The squared amplitude of noise has an exponential distribution, whose mean is its median over
    ln 2. The energy has a Rayleigh distribution of parameter tau; Kovesi's sums of products of filters over all scales
    are the square of the summed filter.
    """
    mean_square = finest.abs().square().flatten(1).median(dim=1).values / math.log(2)
    power = mean_square / filters[0].square().sum()
    summed = torch.fft.ifft2(filters.sum(dim=0), norm="ortho").real
    tau = (power * summed.square().sum()).sqrt()
    threshold = tau * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt(2 - math.pi / 2))
    return threshold[:, None, None, None] / NOISE_OVERESTIMATE


def _frequencies(length: int, device: torch.device) -> torch.Tensor:
    # Kovesi's grid: an odd side, too, reaches both ends of -0.5..0.5, unlike the frequencies of the Fourier transform.
    steps = torch.arange(length, device=device, dtype=torch.float32) - length // 2
    return torch.fft.ifftshift(steps / (length - length % 2))
