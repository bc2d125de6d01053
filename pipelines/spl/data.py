"""Data for structure-preserving editing: photos and their damaged edits, with how much structure each edit lost.

For training and testing of what judges or restores structure. Needs photos and no model.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from ..configuration import option
from ..generation.photos import digest_of, find_photos
from ..generation.recipe import Rejected
from ..images import example_photo, load_image
from .damage import Damage, lossy_edit
from .losses import intensity
from .score import score_structure


@dataclass(frozen=True)
class StructurePairsSettings:
    """Crops of photos, and edits of them with a lossy generator's damage of many strengths."""

    photos: Path | None = option(
        None, "folder of photos, searched with its subfolders (default: the portrait that scikit-image ships)"
    )
    size: int = option(256, "side of the square pictures in pixels", minimum=32, maximum=4096)
    min_crop: float = option(
        0.35, "smallest crop, as a part of the photo's shorter side; the largest is all of it", minimum=0.05, maximum=1
    )
    flip: bool = option(True, "mirror every second crop")
    max_warp: float = option(2.5, "largest displacement, in pixels of a picture of 512 a side", minimum=0)
    max_blur: float = option(3.0, "largest sigma of the blur, in pixels of a picture of 512 a side", minimum=0.05)
    max_noise: float = option(0.05, "largest standard deviation of the noise, with white as 1", minimum=0)
    min_contrast: float = option(
        0.08, "standard deviation of a crop's intensity below which it is rejected as flat, with white as 1", minimum=0
    )
    min_change: float = option(
        0.1, "SPL x100 between edit and crop below which the edit is rejected as hardly different", minimum=0
    )
    caption: str = option("a photo in the warm light of golden hour", "the text of every item")


class StructurePairs:
    """``png`` is the edit, ``source.png`` the crop it came from, ``txt`` the caption; ``json`` has the scores."""

    name = "structure_pairs"
    summary = "photo crops and damaged edits of them, with structure scores; needs photos, no model"
    version = 1
    Settings = StructurePairsSettings
    count = None
    uses_device = False

    def __init__(self, settings: StructurePairsSettings, device: str = "cpu"):
        """``ValueError`` if there is no photo that can be read. Runs on the CPU whatever ``device`` says."""
        self.settings = settings
        self._photos = _find_photos(settings.photos)
        self.inputs = _digest(settings.photos, self._photos)
        self._load = lru_cache(maxsize=8)(_load_photo)
        if not any(map(self._can_be_read, self._photos)):  # most often the first one can
            raise ValueError(f"--photos is {settings.photos}: none of its {len(self._photos)} photos can be read as an "
                             "image. Give other photos, or save them again with an image editor.")  # fmt: skip

    def parameters(self, item: int, seed: int) -> dict:
        """All is drawn, strengths uniformly from none to their maximum: another attempt may take another photo."""
        choose, settings = torch.Generator().manual_seed(seed), self.settings
        draw = torch.rand(9, generator=choose, dtype=torch.float64).tolist()
        photo = self._photos[int(draw[8] * len(self._photos))]
        return {
            "photo": photo.relative_to(settings.photos).as_posix() if settings.photos else photo.name,
            "crop": settings.min_crop + (1 - settings.min_crop) * draw[0],
            "left": draw[1],
            "top": draw[2],
            "flipped": settings.flip and draw[3] < 0.5,
            "warp": settings.max_warp * draw[4],
            "warp_scale": 12 + 36 * draw[5],
            "blur": max(settings.max_blur * draw[6], 0.05),
            "noise": settings.max_noise * draw[7],
        }

    def make(self, parameters: dict, seed: int) -> dict:
        """Crop and damage a photo; ``Rejected`` if it is broken, the crop flat, or the edit hardly different."""
        source = _quantise(_crop(self._photo(parameters["photo"]), parameters, self.settings.size))
        if intensity(source).std() < self.settings.min_contrast:
            raise Rejected("crop too flat (--min-contrast)")
        damage = Damage(**{name: parameters[name] for name in ("warp", "warp_scale", "blur", "noise")}, seed=seed)
        edit = _quantise(lossy_edit(source, damage))
        scores = score_structure(edit, source)
        if scores.spl < self.settings.min_change:
            raise Rejected("edit hardly differs (--min-change)")
        table = {name: round(getattr(scores, name).item(), 5) for name in ("spl", "ssim", "gmsd", "fsim")}
        return {"png": edit[0], "source.png": source[0], "txt": self.settings.caption, "json": {"scores": table}}

    def _photo(self, name: str) -> torch.Tensor:
        folder = self.settings.photos
        try:
            return self._load(folder / name if folder else None)
        except ValueError:
            raise Rejected("photo cannot be read (--photos)") from None

    def _can_be_read(self, photo: Path) -> bool:
        try:
            self._load(photo if self.settings.photos else None)
        except ValueError:
            return False
        return True


def _find_photos(folder: Path | None) -> list[Path]:
    return [Path("astronaut")] if folder is None else find_photos(folder)


def _digest(folder: Path | None, photos: list[Path]) -> str:
    return "astronaut" if folder is None else digest_of(folder, photos)


def _load_photo(path: Path | None) -> torch.Tensor:
    """``ValueError`` if it is no picture; ``OSError`` if it could not be read this time, so that it is tried again."""
    if path is None:
        return example_photo()
    path.read_bytes()  # once more is cheap, and ``load_image`` does not tell the two apart
    return load_image(path)


def _crop(photo: torch.Tensor, parameters: dict, size: int) -> torch.Tensor:
    """A square of ``photo`` ``[1, 3, H, W]``, resized to ``[1, 3, size, size]``."""
    height, width = photo.shape[-2:]
    side = max(round(parameters["crop"] * min(height, width)), 1)
    if side < size / 4:
        raise Rejected("crop far smaller than the picture (--min-crop, --size)")
    top, left = (round(parameters[key] * (length - side)) for key, length in (("top", height), ("left", width)))
    square = photo[..., top : top + side, left : left + side]
    square = square.flip(-1) if parameters["flipped"] else square
    return interpolate(square, size=(size, size), mode="bilinear", antialias=True)


def _quantise(image: torch.Tensor) -> torch.Tensor:
    """What the PNG will show, so that scores are those of the files."""
    return (image * 255).round() / 255
