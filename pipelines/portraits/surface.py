"""What a surface looks like without light: part, albedo, normal, and how it reflects."""

from dataclasses import dataclass

from .arrays import Array, clip, column, device_of, filled, fraction, lerp, replaced, space, unbind
from .noise import cells, noise
from .parts import Part


@dataclass
class Surface:
    """K points of B scenes. albedo, normal (of the bone's space): [B, 3, K]; part: [B, K].

    reflect: [B, 4, K]: strength and sharpness (0..1) of the highlight, light that bleeds through (skin), fuzz (cloth).
    """

    albedo: Array
    normal: Array
    part: Array
    reflect: Array


def surface(albedo, normal, part: int, reflect: tuple[float, float, float, float]) -> Surface:
    """A surface of one part and one way to reflect."""
    batch, _, count = albedo.shape
    parts, values = filled((batch, count), int(part), device_of(albedo)), column(reflect, albedo)
    return Surface(albedo, normal, parts, values + filled((batch, 1, count), 0, device_of(albedo)))


def step(low: float, high: float, value: Array) -> Array:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    share = clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def cover(target: Surface, mask: Array, albedo=None, part: int | None = None, reflect=None) -> None:
    """Repaint ``target`` where ``mask`` [B, K] is true."""
    if albedo is not None:
        target.albedo = replaced(target.albedo, mask[:, None], albedo)
    if part is not None:
        target.part = replaced(target.part, mask, float(part))
    if reflect is not None:
        target.reflect = replaced(target.reflect, mask[:, None], column(reflect, target.albedo))


def roughen(normal: Array, height, point: Array, scale: float, amount: float) -> tuple[Array, Array]:
    """Normals bent by a relief ``height(x, y, z)`` on a lattice ``scale`` times finer than a head unit."""
    xp = space(point)
    x, y, z = unbind(point * scale)
    delta = 0.35
    batch, count = x.shape
    moved = xp.concatenate([x, x + delta, x, x, y, y, y + delta, y, z, z, z, z + delta], 1).reshape(batch, 3, 4, count)
    there = height(moved[:, 0], moved[:, 1], moved[:, 2])
    middle = there[:, 0]
    return middle, normal - (there[:, 1:] - middle[:, None]) * (amount / delta)


def lumps(x, y, z):
    """Round wool-like lumps, 0..1: the sum of a coarse and a fine relief."""
    return 0.62 * noise(x, y, z) + 0.38 * noise(x * 2.1 + 3.7, y * 2.1, z * 2.1)


def hair(point, normal, albedo, part: int, texture) -> Surface:
    """Strands that fall from the crown (``flow`` 0) or run from front to back (1), or curls (``curl`` 1)."""
    xp = space(point)
    x, y, z = unbind(point)
    around = xp.arctan2(x, z + 0.25) * 2.2
    across = lerp(around, x * 2.6, texture["flow"])
    wave = texture["wave"] * xp.sin(y * 7 + 2 * abs(around))
    along = y * 0.7 + z * texture["flow"]
    strand = 0.6 * noise(across * 5 + wave, along) + 0.4 * noise(across * 14 + wave * 2, along * 1.6)
    tangent = xp.stack([z + 0.25, xp.zeros_like(x), -x], 1)
    bent = normal + tangent * ((strand - 0.5) * 0.9)[:, None]
    tone = 0.50 + strand
    if bool((texture["curl"] > 0).any()):
        curl = texture["curl"]
        size = 8.0
        height, rough = roughen(normal, lumps, point, size, 1.0)
        bent = lerp(bent, rough, curl[:, None])
        tone = lerp(tone, 0.30 + 1.2 * height, curl)
    made = surface(albedo * tone[:, None], bent, part, (0.35, 0.30, 0.0, 0.25))
    made.reflect[:, 0] *= 0.4 + strand
    return made


def cloth(point, normal, albedo, part: int, texture) -> Surface:
    """Woven cloth: plain, or with stripes, checks, dots, an opening over a shirt, buttons."""
    xp = space(point)
    x, y, z = unbind(point)
    second, pattern = texture["second"], texture["pattern"]
    around = xp.arctan2(x, z + 0.2)
    if bool((pattern > 0).any()):
        albedo = xp.where(_pattern(around, y, pattern)[:, None], second, albedo)
    made = surface(albedo, normal, part, (0.05, 0.15, 0.0, 0.5))
    weave = 0.90 + 0.2 * noise(around * 55, y * 48)
    fold = noise(around * 2.5 + 7, y * 1.3) - 0.5
    tangent = xp.stack([z + 0.3, xp.zeros_like(x), -x], 1)
    made.normal = normal + tangent * (fold * texture["fold"])[:, None]
    made.albedo = made.albedo * (weave * (1 + 0.35 * fold))[:, None]
    if bool((texture["jacket"] + texture["buttons"] > 0).any()):
        _jacket(made, x, y, z, texture)
    if bool((texture["neckline"] > 0).any()):
        _neckline(made, x, y, z, texture)
    return made


def _pattern(around, y, pattern):
    """Where the second colour is: stripes, checks or dots."""
    band = fraction(y * 3.2) < 0.45
    check = (fraction(around * 3.5) < 0.5) ^ (fraction(y * 3.5) < 0.5)
    u, v = fraction(around * 5) - 0.5, fraction(y * 4) - 0.5
    dot = (u**2 + v**2) < 0.07
    return ((pattern == 1) & band) | ((pattern == 2) & check) | ((pattern == 3) & dot)


def _jacket(made, x, y, z, texture):
    """An open jacket's shirt, lapels and buttons."""
    front = z > 0
    width = 0.34 + 0.22 * (y + 0.3)
    opening = front & (abs(x) < width) & (texture["jacket"] > 0)
    cover(made, opening, texture["second"])
    lapel = front & (abs(abs(x) - width - 0.03) < 0.035) & (texture["jacket"] > 0)
    cover(made, lapel, made.albedo * 0.6)
    placket = front & (abs(x) < 0.012) & ((opening & (y < -0.1)) | (texture["buttons"] > 0))
    cover(made, placket, made.albedo * 0.65)
    button = front & ((x**2 + (fraction(y * 2) / 2 - 0.25) ** 2) < 0.0022)
    cover(made, button & (texture["buttons"] > 0), made.albedo * 0.35 + 0.1)


def _neckline(made, x, y, z, texture):
    """The skin above a neckline."""
    depth = texture["neckline"]
    skin = (z > 0) & ((x / (0.50 + 0.15 * depth)) ** 2 + ((y - 0.1) / (0.02 + 0.6 * depth)) ** 2 < 1)
    cover(made, skin & (depth > 0), texture["skin"], Part.NECK, (0.12, 0.35, 1.0, 0.0))


def wool(point, normal, albedo, part: int, texture) -> Surface:
    """Curly wool or fur trim; ``spots`` makes ermine of it."""
    xp = space(point)
    size = 6.5
    height, bent = roughen(normal, lumps, point, size, 0.85)
    tone = clip(0.52 + 0.75 * height, high=1.05)
    made = surface(albedo * tone[:, None], bent, part, (0.0, 0.1, 0.25, 0.7))
    if bool((texture["spots"] > 0).any()):
        x, y, z = unbind(point)
        u, v = xp.arctan2(x, z) * 5, xp.hypot(x, z) * 6 + y * 3
        shift = cells(v) * 0.5
        near = (fraction(u + shift) - 0.5) ** 2 * 3 + (fraction(v) - 0.5) ** 2 < 0.09
        cover(made, near & (texture["spots"] > 0), 0.03)
    return made


def felt(point, normal, albedo, part: int, texture) -> Surface:
    """Soft plain cloth."""
    grain = 0.9 + 0.2 * noise(*unbind(point * 26))
    return surface(albedo * grain[:, None], normal, part, (0.04, 0.1, 0.1, 0.6))


def metal(point, normal, albedo, part: int, texture) -> Surface:
    """Polished gold and other shiny things."""
    return surface(albedo, normal, part, (1.0, 0.75, 0.0, 0.2))


def glossy(point, normal, albedo, part: int, texture) -> Surface:
    """Plastic and leather: spectacle frames, shoes."""
    return surface(albedo, normal, part, (0.4, 0.6, 0.0, 0.1))


def petal(point, normal, albedo, part: int, texture) -> Surface:
    """Petals and leaves: veins that run outwards, brighter rims."""
    xp = space(point)
    x, y, _ = unbind(point)
    reach = xp.hypot(x, y - 0.1)
    vein = noise(xp.arctan2(x, y - 0.1) * 30, reach * 2)
    tone = (0.72 + 0.3 * vein) * (0.45 + 0.55 * step(0.75, 1.35, reach))
    return surface(albedo * tone[:, None], normal, part, (0.08, 0.25, 0.7, 0.3))


def bare(point, normal, albedo, part: int, texture) -> Surface:
    """Skin without a face: hands, legs."""
    tone = 0.95 + 0.1 * noise(*unbind(point * 9))
    return surface(albedo * tone[:, None], normal, part, (0.12, 0.35, 1.0, 0.0))
