"""What a surface looks like without light: part, albedo, normal, and how it reflects."""

from dataclasses import dataclass

import torch

from .noise import cells, noise
from .parts import Part


@dataclass
class Surface:
    """K points of B scenes. albedo, normal (of the bone's space): [B, 3, K]; part: int [B, K].

    reflect: [B, 4, K]: strength and sharpness (0..1) of the highlight, light that bleeds through (skin), fuzz (cloth).
    """

    albedo: torch.Tensor
    normal: torch.Tensor
    part: torch.Tensor
    reflect: torch.Tensor


def surface(albedo, normal, part: int, reflect: tuple[float, float, float, float]) -> Surface:
    """A surface of one part and one way to reflect."""
    batch, _, count = albedo.shape
    parts = torch.full((batch, count), int(part), dtype=torch.int32, device=albedo.device)
    values = torch.tensor(reflect, dtype=torch.float32, device=albedo.device)
    return Surface(albedo, normal, parts, values[None, :, None].expand(batch, 4, count).clone())


def step(low: float, high: float, value: torch.Tensor) -> torch.Tensor:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def cover(target: Surface, mask: torch.Tensor, albedo=None, part: int | None = None, reflect=None) -> None:
    """Repaint ``target`` where ``mask`` [B, K] is true."""
    if albedo is not None:
        target.albedo = torch.where(mask[:, None], albedo, target.albedo)
    if part is not None:
        target.part = target.part.masked_fill(mask, int(part))
    if reflect is not None:
        values = torch.tensor(reflect, dtype=torch.float32, device=mask.device)[None, :, None]
        target.reflect = torch.where(mask[:, None], values, target.reflect)


def roughen(normal: torch.Tensor, height, point: torch.Tensor, scale: float, amount: float) -> torch.Tensor:
    """Normals bent by a relief ``height(x, y, z)`` on a lattice ``scale`` times finer than a head unit."""
    x, y, z = (point * scale).unbind(1)
    delta = 0.35
    middle = height(x, y, z)
    slope = [height(x + delta, y, z) - middle, height(x, y + delta, z) - middle, height(x, y, z + delta) - middle]
    return normal - torch.stack(slope, 1) * (amount / delta)


def lumps(x, y, z):
    """Round wool-like lumps, 0..1: the sum of a coarse and a fine relief."""
    return 0.62 * noise(x, y, z) + 0.38 * noise(x * 2.1 + 3.7, y * 2.1, z * 2.1)


def hair(point, normal, albedo, part: int, texture) -> Surface:
    """Strands that fall from the crown (``flow`` 0) or run from front to back (1), or curls (``curl`` 1)."""
    x, y, z = point.unbind(1)
    around = torch.atan2(x, z + 0.25) * 2.2
    across = torch.lerp(around, x * 2.6, texture["flow"])
    wave = texture["wave"] * torch.sin(y * 7 + 2 * around.abs())
    along = y * 0.7 + z * texture["flow"]
    strand = 0.6 * noise(across * 5 + wave, along) + 0.4 * noise(across * 14 + wave * 2, along * 1.6)
    tangent = torch.stack([z + 0.25, torch.zeros_like(x), -x], 1)
    bent = normal + tangent * ((strand - 0.5) * 0.9)[:, None]
    tone = 0.50 + strand
    if bool((texture["curl"] > 0).any()):
        curl = texture["curl"]
        size = 8.0
        rough = roughen(normal, lumps, point, size, 1.0)
        bent = torch.lerp(bent, rough, curl[:, None])
        tone = torch.lerp(tone, 0.30 + 1.2 * lumps(*(point * size).unbind(1)), curl)
    made = surface(albedo * tone[:, None], bent, part, (0.35, 0.30, 0.0, 0.25))
    made.reflect[:, 0] *= 0.4 + strand
    return made


def cloth(point, normal, albedo, part: int, texture) -> Surface:
    """Woven cloth: plain, or with stripes, checks, dots, an opening over a shirt, buttons."""
    x, y, z = point.unbind(1)
    second, pattern = texture["second"], texture["pattern"]
    around = torch.atan2(x, z + 0.2)
    if bool((pattern > 0).any()):
        albedo = torch.where(_pattern(around, y, pattern)[:, None], second, albedo)
    made = surface(albedo, normal, part, (0.05, 0.15, 0.0, 0.5))
    weave = 0.90 + 0.2 * noise(around * 55, y * 48)
    fold = noise(around * 2.5 + 7, y * 1.3) - 0.5
    tangent = torch.stack([z + 0.3, torch.zeros_like(x), -x], 1)
    made.normal = normal + tangent * (fold * texture["fold"])[:, None]
    made.albedo = made.albedo * (weave * (1 + 0.35 * fold))[:, None]
    if bool((texture["jacket"] + texture["buttons"] > 0).any()):
        _jacket(made, x, y, z, texture)
    if bool((texture["neckline"] > 0).any()):
        _neckline(made, x, y, z, texture)
    return made


def _pattern(around, y, pattern):
    """Where the second colour is: stripes, checks or dots."""
    band = torch.remainder(y * 3.2, 1) < 0.45
    check = (torch.remainder(around * 3.5, 1) < 0.5) ^ (torch.remainder(y * 3.5, 1) < 0.5)
    u, v = torch.remainder(around * 5, 1) - 0.5, torch.remainder(y * 4, 1) - 0.5
    dot = (u.square() + v.square()) < 0.07
    return ((pattern == 1) & band) | ((pattern == 2) & check) | ((pattern == 3) & dot)


def _jacket(made, x, y, z, texture):
    """An open jacket's shirt, lapels and buttons."""
    front = z > 0
    width = 0.34 + 0.22 * (y + 0.3)
    opening = front & (x.abs() < width) & (texture["jacket"] > 0)
    cover(made, opening, texture["second"])
    lapel = front & ((x.abs() - width - 0.03).abs() < 0.035) & (texture["jacket"] > 0)
    cover(made, lapel, made.albedo * 0.6)
    placket = front & (x.abs() < 0.012) & ((opening & (y < -0.1)) | (texture["buttons"] > 0))
    cover(made, placket, made.albedo * 0.65)
    button = front & ((x.square() + (torch.remainder(y * 2, 1) / 2 - 0.25).square()) < 0.0022)
    cover(made, button & (texture["buttons"] > 0), made.albedo * 0.35 + 0.1)


def _neckline(made, x, y, z, texture):
    """The skin above a neckline."""
    depth = texture["neckline"]
    skin = (z > 0) & ((x / (0.50 + 0.15 * depth)).square() + ((y - 0.1) / (0.02 + 0.6 * depth)).square() < 1)
    cover(made, skin & (depth > 0), texture["skin"], Part.NECK, (0.12, 0.35, 1.0, 0.0))


def wool(point, normal, albedo, part: int, texture) -> Surface:
    """Curly wool or fur trim; ``spots`` makes ermine of it."""
    size = 6.5
    height = lumps(*(point * size).unbind(1))
    tone = (0.52 + 0.75 * height).clamp(max=1.05)
    bent = roughen(normal, lumps, point, size, 0.85)
    made = surface(albedo * tone[:, None], bent, part, (0.0, 0.1, 0.25, 0.7))
    if bool((texture["spots"] > 0).any()):
        x, y, z = point.unbind(1)
        u, v = torch.atan2(x, z) * 5, torch.hypot(x, z) * 6 + y * 3
        shift = cells(v) * 0.5
        near = (torch.remainder(u + shift, 1) - 0.5).square() * 3 + (torch.remainder(v, 1) - 0.5).square() < 0.09
        cover(made, near & (texture["spots"] > 0), torch.full_like(made.albedo, 0.03))
    return made


def felt(point, normal, albedo, part: int, texture) -> Surface:
    """Soft plain cloth."""
    grain = 0.9 + 0.2 * noise(*(point * 26).unbind(1))
    return surface(albedo * grain[:, None], normal, part, (0.04, 0.1, 0.1, 0.6))


def metal(point, normal, albedo, part: int, texture) -> Surface:
    """Polished gold and other shiny things."""
    return surface(albedo, normal, part, (1.0, 0.75, 0.0, 0.2))


def glossy(point, normal, albedo, part: int, texture) -> Surface:
    """Plastic and leather: spectacle frames, shoes."""
    return surface(albedo, normal, part, (0.4, 0.6, 0.0, 0.1))


def petal(point, normal, albedo, part: int, texture) -> Surface:
    """Petals and leaves: veins that run outwards, brighter rims."""
    x, y, _ = point.unbind(1)
    reach = torch.hypot(x, y - 0.1)
    vein = noise(torch.atan2(x, y - 0.1) * 30, reach * 2)
    tone = (0.72 + 0.3 * vein) * (0.45 + 0.55 * step(0.75, 1.35, reach))
    return surface(albedo * tone[:, None], normal, part, (0.08, 0.25, 0.7, 0.3))


def bare(point, normal, albedo, part: int, texture) -> Surface:
    """Skin without a face: hands, legs."""
    tone = 0.95 + 0.1 * noise(*(point * 9).unbind(1))
    return surface(albedo * tone[:, None], normal, part, (0.12, 0.35, 1.0, 0.0))
