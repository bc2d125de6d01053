"""Reading, checking and matching of images and masks.

Whatever a person hands in is checked here once, so that the mathematics behind it may assume good input. Every error
says what was wrong, with which value, and what to do about it.
"""

import math
from pathlib import Path

import torch

from .files import atomic_file
from .optional import need

# What counts as a picture where a folder is searched.
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Bicubic and Lanczos resizing overshoot by a tenth or so at edges; what is more is another range or a mistake upstream.
RANGE_TOLERANCE = 0.25
# Two shapes count as the same picture when their aspect ratios agree this well (a crop to multiples of 8 does).
ASPECT_TOLERANCE = 0.02
CELLS = 8, 16, 32  # pixels a side that a latent cell of today's VAEs stands for


def size_text(tensor: torch.Tensor) -> str:
    """Width x height of an image or mask ``[..., H, W]``, as people write it."""
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"


def check_image(image: torch.Tensor, name: str, min_side: int = 1) -> torch.Tensor:
    """Return ``image`` as float32 ``[B, 3, H, W]`` clamped to 0..1, or raise ``ValueError`` saying what is wrong.

    Values up to ``RANGE_TOLERANCE`` outside 0..1 are the overshoot of a resize and are clamped; ``min_side`` is in
    pixels.
    """
    if image.ndim != 4:
        raise ValueError(f"{name} has {image.ndim} dimensions {tuple(image.shape)}: expected a batch of images.")
    if image.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch: connect at least one image.")
    channels = image.shape[1]
    if channels == 4:
        raise ValueError(f"{name} has 4 channels (RGBA): drop the alpha channel or connect an RGB image.")
    if channels != 3:
        raise ValueError(f"{name} has {channels} channels: connect an RGB image with 3.")
    if min(image.shape[-2:]) < min_side:
        raise ValueError(
            f"{name} is {size_text(image)} pixels, smaller than the window of {min_side}: use a larger image (or a "
            "smaller radius, where there is one)."
        )
    return _check_values(image.float(), name)


def _check_values(tensor: torch.Tensor, name: str) -> torch.Tensor:
    low, high = (float(v) for v in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} has {bad} values that are NaN or infinite: look at the node or file it comes from.")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"{name} has values from {low:.3g} to {high:.3g}: expected 0 to 1. Scale or clamp it before this step."
        )
    return tensor if low >= 0 and high <= 1 else tensor.clamp(0, 1)


def match_batch(image: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """Repeat ``image`` (or mask) along its first axis to ``batch`` entries; ``ValueError`` if it does not divide."""
    count = image.shape[0]
    if count == batch:
        return image
    if batch % count:
        raise ValueError(
            f"{name} is a batch of {count}, which does not fit a batch of {batch}: connect 1 image or {batch}."
        )
    return image.repeat(batch // count, *[1] * (image.ndim - 1))


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """True if the sizes ``(H, W)`` show the same picture at two scales (one cropped to a multiple of 8 included)."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1) <= ASPECT_TOLERANCE


def match_size(image: torch.Tensor, size: tuple[int, int], name: str, other: str) -> torch.Tensor:
    """Resize ``image`` ``[B, C, h, w]`` to ``size`` ``(H, W)`` when the aspect agrees, else ``ValueError``.

    Antialiased bilinear for masks and images alike: it never overshoots 0..1.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if not same_aspect(tuple(image.shape[-2:]), tuple(size)):
        raise ValueError(
            f"{name} is {size_text(image)}, {other} is {size[1]}x{size[0]}: "
            f"resize or crop the {name} to the same shape as the {other}."
        )
    return torch.nn.functional.interpolate(image, size=tuple(size), mode="bilinear", antialias=True)


def cut_as_encoded(
    source: torch.Tensor, size: tuple[int, int], mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``source`` [B, 3, H, W], and a ``mask`` of its size, cut as ComfyUI's VAE Encode cuts if that leaves ``size``.

    It cuts a photo to whole latent cells, around its centre, and says nothing. Others stay as they are.
    """
    own = tuple(source.shape[-2:])
    if not any(tuple(size) == tuple(side // cell * cell for side in own) for cell in CELLS):
        return source, mask
    rows, columns = (slice((have - want) // 2, (have - want) // 2 + want) for have, want in zip(own, size, strict=True))
    if mask is not None and tuple(mask.shape[-2:]) == own:
        mask = mask[..., rows, columns]
    return source[..., rows, columns], mask


def check_mask(mask: torch.Tensor, size: tuple[int, int], batch: int, name: str = "mask") -> torch.Tensor:
    """Return ``mask`` (``[H, W]``, ``[B, H, W]`` or ``[B, 1, H, W]``) as float32 ``[batch, 1, H, W]`` at ``size``."""
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 3:
        mask = mask[:, None]
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.numel() == 0:
        raise ValueError(f"{name} has the shape {tuple(mask.shape)}: expected a batch of masks.")
    mask = _check_values(mask.float(), name)
    return match_batch(match_size(mask, size, name, "image"), batch, name)


def match_pair(image: torch.Tensor, source: torch.Tensor, min_side: int, names=("image", "source")):
    """Check two images and give both the same batch; their sizes must agree exactly.

    Returns ``(image, source)``, both float32 ``[B, 3, H, W]``. ``ValueError`` if sizes differ or batches do not divide.
    """
    image = check_image(image, names[0], min_side)
    source = check_image(source, names[1], min_side)
    if image.shape[-2:] != source.shape[-2:]:
        raise ValueError(
            f"{names[0]} is {size_text(image)}, {names[1]} is {size_text(source)}: they are compared pixel by pixel, "
            f"resize or crop one of them first."
        )
    batch = max(image.shape[0], source.shape[0])
    return match_batch(image, batch, names[0]), match_batch(source, batch, names[1])


def load_image(path: str | Path) -> torch.Tensor:
    """Read an image file as ``[1, 3, H, W]`` float32 in 0..1, turned upright by its EXIF orientation.

    Raises ``ValueError`` for a missing file, a file that is no image, a truncated one, or one with transparency.
    """
    import numpy as np

    return from_uint8(np.asarray(open_picture(path)))


def open_picture(path: str | Path):
    """Read an image file as an upright PIL image in RGB; raises as ``load_image`` does."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the path of a photo (PNG, JPEG, WebP, ...).")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image file: give a PNG, JPEG or WebP photo.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): save it again with an image editor.") from None
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{path} is a {picture.mode} greyscale image of more than 8 bits: save it as 8-bit RGB.")
    if picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255:
        raise ValueError(f"{path} has transparent parts: flatten it onto a background first.")
    return picture.convert("RGB")


def example_photo() -> torch.Tensor:
    """The portrait of astronaut Eileen Collins that ships inside scikit-image (NASA, public domain)."""
    return from_uint8(need("skimage.data", "scikit-image").astronaut())


def from_uint8(array) -> torch.Tensor:
    """A uint8 array ``[H, W, 3]`` as ``[1, 3, H, W]`` float32 in 0..1."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def to_uint8(image: torch.Tensor):
    """One image ``[3, H, W]`` in 0..1 as a uint8 array ``[H, W, 3]``, rounded to the nearest grey level."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def save_image(image: torch.Tensor, path: str | Path) -> None:
    """Write one image ``[3, H, W]`` in 0..1 as PNG; the file appears whole or not at all."""
    from PIL import Image

    with atomic_file(path) as temporary:
        Image.fromarray(to_uint8(image)).save(temporary, format="PNG")
