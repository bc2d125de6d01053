"""What is behind the people: procedural pictures, soft as if out of focus, the same at every resolution."""

import numpy as np
import torch

from ..randomness import generator
from .arrays import Array, array, as_float, clip, device_of, filled, like, space
from .noise import cells, noise
from .parameters import Background
from .surface import step


def background(setting: Background, height: int, width: int, device="cpu") -> Array:
    """Linear light [3, height, width] behind the people; ``device`` None gives a numpy array.

    Raises ``ValueError`` for an unknown kind.
    """
    if setting.kind not in KINDS:
        raise ValueError(f"background is {setting.kind!r}: choose one of {', '.join(KINDS)}.")
    device = device and torch.device(device)
    y = array((1 - 2 * (np.arange(height) + 0.5) / height)[:, None] + np.zeros(width), device)
    x = array((2 * (np.arange(width) + 0.5) - width)[None] / height + np.zeros((height, 1)), device)
    draw = torch.rand(96, generator=generator("background", setting.kind, setting.seed)).tolist()
    return KINDS[setting.kind](x, y, setting.color, draw)


def _mix(low, high, share):
    """Colours ``low`` to ``high`` by ``share`` [H, W]; a colour is a triple or a picture."""
    low, high = (_picture(value, share) for value in (low, high))
    return low + (high - low) * share


def _picture(value, other):
    return value if hasattr(value, "shape") else like(value, other)[:, None, None]


def _sky(y, low, middle, high, horizon=-0.2):
    up = step(horizon, 1.0, y)
    return _mix(_mix(low, middle, step(0, 0.45, up)), high, step(0.4, 1, up))


def _glow(x, y, at, size, color):
    """Light that falls off around a point."""
    square = ((x - at[0]) ** 2 + (y - at[1]) ** 2) / size**2
    return _picture(color, x) / (1 + square) ** 2


def _disc(x, y, at, radius, blur=0.02):
    xp = space(x)
    return step(radius + blur, radius - blur, xp.hypot(x - at[0], y - at[1]))


def _clouds(x, y, draw):
    return step(0.45, 0.85, 0.65 * noise(x * 1.6 + draw[0] * 50, y * 5) + 0.35 * noise(x * 4 + draw[1] * 50, y * 11))


def _plain(x, y, color, draw):
    return _picture(color, x) + 0 * x


def _gradient(x, y, color, draw):
    return _mix([0.35 * part for part in color], color, step(-1.1, 1.1, y + (draw[0] - 0.5) * x))


def _studio(x, y, color, draw):
    xp = space(x)
    far = xp.hypot(x - 0.3 * (draw[0] - 0.5), y - 0.1)
    return _picture(color, x) * (1.15 - 0.85 * step(0.1, 1.6, far)) * (0.96 + 0.08 * noise(x * 2, y * 2))


def _wall(x, y, color, draw):
    """A plastered wall with the light of the barred window on it."""
    xp = space(x)
    slant = x + 0.25 * y
    u, v = (slant / 0.34 + draw[0]), ((y - 0.1 * x) / 0.40 + draw[1])
    bars = xp.maximum(step(0.33, 0.43, abs(u - xp.floor(u) - 0.5)), step(0.35, 0.43, abs(v - xp.floor(v) - 0.5)))
    lit = (1 - bars) * step(1.05, 0.85, abs(slant)) * step(1.0, 0.9, abs(y))
    rough = 0.9 + 0.2 * noise(x * 14, y * 14)
    return _picture(color, x) * (0.14 + 0.62 * lit) * rough


def _two_tone(x, y, color, draw):
    return _mix((0.22, 0.006, 0.02), (0.008, 0.02, 0.24), step(-0.8, 0.8, x)) * (1.1 - 0.5 * abs(y))


def _black(x, y, color, draw):
    return filled((3, *x.shape), 0.0004, device_of(x))


def _spots(x, y, draw, count, palette, size, height):
    """Lights out of focus: discs with a brighter rim."""
    xp = space(x)
    total = filled((3, *x.shape), 0, device_of(x))
    for index in range(count):
        u, v, w = draw[3 * index + 3 : 3 * index + 6]
        at, radius = ((u - 0.5) * 2.3, height[0] + v * (height[1] - height[0])), size * (0.5 + w)
        away = xp.hypot(x - at[0], y - at[1]) / radius
        total += _picture(palette[index % len(palette)], x) * (step(1.08, 0.92, away) * (0.5 + 0.5 * away**2))
    return total


NEON = ((1.0, 0.08, 0.40), (0.05, 0.55, 1.0), (1.0, 0.45, 0.08), (0.55, 0.10, 1.0), (0.9, 0.8, 0.35), (0.05, 0.9, 0.6))
STREET = ((1.0, 0.62, 0.22), (1.0, 0.85, 0.6), (1.0, 0.08, 0.04), (0.4, 0.65, 1.0))


def _bokeh(x, y, color, draw):
    base = _mix((0.015, 0.008, 0.035), (0.03, 0.012, 0.06), step(-1, 1, y))
    return base + 0.55 * _spots(x, y, draw, 24, NEON, 0.17, (-1.0, 1.0))


def _buildings(x, y, draw, dark, window):
    """Tall houses with lit windows left and right of a street."""
    xp = space(x)
    column = xp.floor(x * 3.2 + draw[0] * 10)
    top = -0.05 + 0.75 * cells(column + 0.5) + 0.25 * step(0.2, 1.0, abs(x))
    house = step(0.01, -0.01, y - top) * step(0.10, 0.22, abs(x))
    u, v = x * 22, y * 16
    pane = step(0.40, 0.28, abs(u - xp.floor(u) - 0.5)) * step(0.40, 0.25, abs(v - xp.floor(v) - 0.5))
    lit = pane * step(0.58, 0.62, cells(u, v)) * step(-0.45, -0.35, y)
    return house, _picture(dark, x) + _picture(window, x) * lit * (0.5 + 0.5 * cells(v, u))


def _city(x, y, color, draw):
    sky = _mix((0.035, 0.028, 0.05), (0.006, 0.009, 0.028), step(-0.2, 0.9, y))
    house, look = _buildings(x, y, draw, (0.006, 0.007, 0.013), (0.55, 0.36, 0.14))
    picture = _mix(sky, look, house)
    street = step(-0.38, -0.46, y)
    picture = _mix(picture, _mix((0.02, 0.018, 0.02), (0.07, 0.045, 0.03), noise(x * 6, y * 22)), street)
    return picture + 0.7 * _spots(x, y, draw, 9, STREET, 0.075, (-0.75, -0.15))


def _rain(x, y, color, draw):
    xp = space(x)
    base = _mix((0.02, 0.03, 0.045), (0.05, 0.065, 0.09), step(-1, 1, y))
    picture = base + 0.38 * _spots(x, y, draw, 16, STREET, 0.13, (-0.9, 0.7))
    slant = x * 46 + y * 5
    streak = step(0.86, 0.97, cells(slant, y * 3.2 + 9 * cells(slant))) * step(
        0.5, 0.15, abs(slant - xp.floor(slant) - 0.5)
    )
    return picture + 0.13 * streak * _picture((0.6, 0.75, 1.0), x)


def _sunset(x, y, color, draw):
    sky = _sky(y, (1.25, 0.42, 0.10), (0.95, 0.26, 0.22), (0.28, 0.10, 0.26), -0.6)
    sky = _mix(sky, (1.2, 0.42, 0.30), 0.55 * _clouds(x, y, draw))
    sky = sky + _glow(x, y, (0.55, -0.2), 0.5, (1.5, 0.8, 0.25))
    hill = step(0.02, -0.02, y + 0.62 - 0.16 * noise(x * 2.2 + draw[2] * 9))
    return _mix(sky, (0.035, 0.015, 0.022), hill)


def _ocean(x, y, color, draw):
    xp = space(x)
    sky = _sky(y, (1.2, 0.50, 0.16), (0.75, 0.30, 0.28), (0.16, 0.15, 0.34), -0.15)
    sky = _mix(sky, (1.1, 0.5, 0.34), 0.5 * _clouds(x, y, draw))
    sun = (0.62, 0.02)
    sky = sky + _disc(x, y, sun, 0.13) * 1.6 + _glow(x, y, sun, 0.4, (1.0, 0.5, 0.15))
    depth = clip(-0.12 - y, 0.004)
    ripple = noise(x * 3 / (depth + 0.12), 3.5 / (depth + 0.06))
    path = xp.exp(-(((x - sun[0]) / (0.10 + 0.5 * depth)) ** 2))
    sea = _mix((0.05, 0.07, 0.13), (0.45, 0.24, 0.20), ripple) + path * step(0.4, 0.8, ripple) * _picture(
        (1.5, 0.7, 0.25), x
    )
    picture = _mix(sky, sea, step(-0.11, -0.13, y))
    sand = step(-0.62, -0.72, y + 0.06 * xp.sin(x * 3 + draw[0] * 6))
    return _mix(picture, (0.30, 0.19, 0.11), sand)


def _ridges(x, picture, y, draw, colors, base, rough):
    for index, tint in enumerate(colors):
        at = x * (1.3 + 0.7 * index) + draw[index + 10] * 40
        crest = base - 0.30 * index + rough * (noise(at * 1.5) + 0.45 * noise(at * 4.5) + 0.2 * noise(at * 12))
        picture = _mix(picture, tint, step(0.015, -0.015, y - crest))
    return picture


def _mountains(x, y, color, draw):
    sky = _sky(y, (1.15, 0.48, 0.22), (0.75, 0.22, 0.36), (0.14, 0.09, 0.32), -0.2)
    sky = _mix(sky, (1.2, 0.45, 0.38), 0.6 * _clouds(x, y, draw))
    colors = ((0.42, 0.17, 0.30), (0.22, 0.08, 0.22), (0.09, 0.04, 0.12), (0.03, 0.018, 0.045))
    return _ridges(x, sky, y, draw, colors, 0.12, 0.5)


def _golden(x, y, color, draw):
    sky = _sky(y, (1.15, 0.72, 0.28), (0.95, 0.62, 0.34), (0.32, 0.38, 0.52), -0.4)
    sky = _mix(sky, (1.25, 0.85, 0.50), 0.55 * _clouds(x, y, draw)) + _glow(x, y, (0.75, 0.25), 0.42, (1.4, 0.9, 0.35))
    field = _mix((0.34, 0.20, 0.045), (0.62, 0.40, 0.10), noise(x * 30, y * 7))
    return _mix(sky, field, step(-0.34, -0.44, y + 0.05 * noise(x * 2)))


def _stars(x, y, color, draw):
    xp = space(x)
    sky = _mix((0.022, 0.028, 0.075), (0.004, 0.006, 0.022), step(-0.6, 1.0, y))
    milky = xp.exp(-(((y - 0.35 - 0.55 * x) / 0.30) ** 2)) * (0.4 + 0.9 * noise(x * 5, y * 5))
    sky = sky + milky * _picture((0.035, 0.032, 0.07), x)
    u, v = x * 17, y * 17
    dx, dy = u - xp.floor(u) - 0.2 - 0.6 * cells(u, v), v - xp.floor(v) - 0.2 - 0.6 * cells(v + 40, u)
    star = xp.exp(-(dx**2 + dy**2) * 70) * step(0.45, 1.0, cells(u + 9, v + 5)) * 1.3
    moon = (-0.62 + 0.2 * draw[0], 0.60)
    crater = 0.75 + 0.35 * noise(x * 13, y * 13)
    sky = sky + star + _glow(x, y, moon, 0.20, (0.10, 0.13, 0.2)) + _disc(x, y, moon, 0.15, 0.012) * crater * 0.95
    return _ridges(x, sky, y, draw, ((0.006, 0.008, 0.018),), -0.75, 0.3)


def _garden(x, y, color, draw):
    xp = space(x)
    leaf = noise(x * 4 + 3 * y + draw[0] * 30, y * 4 - 3 * x)
    leaf = 0.55 * leaf + 0.45 * noise(x * 13 - 6 * y, y * 13 + 6 * x + draw[1] * 30)
    picture = _mix((0.015, 0.05, 0.012), (0.20, 0.30, 0.05), step(0.2, 0.8, leaf))
    picture = picture + _glow(x, y, (-0.7, 0.75), 0.5, (0.9, 0.7, 0.25))
    palette = (
        (0.85, 0.06, 0.16),
        (0.95, 0.55, 0.06),
        (0.80, 0.22, 0.62),
        (0.9, 0.85, 0.7),
        (0.42, 0.12, 0.70),
        (0.95, 0.75, 0.1),
    )
    for index in range(26):
        u, v, w = draw[3 * index + 3 : 3 * index + 6]
        at, size = ((u - 0.5) * 2.3, -1.0 + 1.45 * v), 0.09 + 0.08 * w
        turn = xp.arctan2(y - at[1], x - at[0])
        away = xp.hypot(x - at[0], y - at[1]) / (size * (0.82 + 0.25 * xp.cos(turn * 5 + 6 * w)))
        flower = _mix((0.75, 0.5, 0.05), palette[index % len(palette)], step(0.25, 0.38, away))
        picture = _mix(picture, flower * (0.55 + 0.45 * away), step(1.12, 0.88, away))
    return picture


def _farm(x, y, color, draw):
    xp = space(x)
    sky = _sky(y, (0.92, 0.52, 0.36), (0.55, 0.42, 0.52), (0.22, 0.26, 0.45), -0.2)
    sky = _mix(sky, (0.95, 0.60, 0.50), 0.45 * _clouds(x, y, draw))
    hills = _ridges(x, sky, y, draw, ((0.14, 0.15, 0.13), (0.10, 0.12, 0.06)), -0.02, 0.2)
    depth = clip(-0.24 - y, 0.01)
    furrow = xp.sin((x - 0.2) / (depth + 0.08) * 5)
    ground = _mix((0.13, 0.12, 0.035), (0.30, 0.24, 0.07), step(-0.6, 0.6, furrow) * 0.7 + 0.3 * noise(x * 20, y * 20))
    picture = _mix(hills, ground, step(-0.24, -0.27, y))
    side = 1 if draw[0] > 0.5 else -1
    u = (x * side - 0.66) / 0.22
    wall = (abs(u) < 1) & (y > -0.28) & (y < 0.02)
    roof = (y >= 0.02) & (y < 0.02 + 0.20 * (1.15 - abs(u)))
    picture = _mix(picture, (0.26, 0.045, 0.03), as_float(wall))
    return _mix(picture, (0.10, 0.07, 0.065), as_float(roof & (abs(u) < 1.15)))


def _lightning(x, y, color, draw):
    xp = space(x)
    cloud = 0.6 * noise(x * 2 + draw[0] * 30, y * 3) + 0.4 * noise(x * 5, y * 7 + draw[1] * 30)
    side = 0.62 if draw[2] > 0.5 else -0.62
    picture = _mix((0.008, 0.010, 0.022), (0.10, 0.11, 0.18), cloud) + _glow(x, y, (side, 0.7), 0.5, (0.30, 0.32, 0.55))
    bend = 0.22 * (noise(y * 4 + draw[3] * 20) - 0.5) + 0.10 * (noise(y * 13 + draw[4] * 20) - 0.5)
    away = abs(x - side - bend - 0.12 * y)
    fork = abs(x - side - 0.5 * bend + 0.30 * (y - 0.35)) + step(0.35, 0.45, y) * 9 + step(-0.1, -0.25, y) * 9
    bolt = xp.exp(-((away / 0.014) ** 2)) + 0.6 * xp.exp(-((fork / 0.009) ** 2)) + 0.10 / (1 + (away / 0.07) ** 2)
    picture = picture + bolt * step(-0.75, -0.5, y) * _picture((1.7, 1.8, 2.4), x)
    return _ridges(x, picture, y, draw, ((0.006, 0.007, 0.012),), -0.72, 0.25)


def _desert(x, y, color, draw):
    xp = space(x)
    sky = _sky(y, (1.2, 0.62, 0.26), (0.95, 0.48, 0.28), (0.42, 0.26, 0.34), -0.2)
    sun = (-0.62, 0.16)
    sky = sky + _disc(x, y, sun, 0.15) * 1.4 + _glow(x, y, sun, 0.45, (0.9, 0.45, 0.15))
    for index in range(3):
        crest = -0.14 - 0.24 * index + 0.13 * xp.sin(x * (2.0 + 0.7 * index) + 6 * draw[index])
        ripple = 0.5 + 0.5 * xp.sin((y * (60 - 14 * index) + 5 * noise(x * 3, y * 6)) + x * 4)
        sunny = step(-0.25, 0.30, xp.cos(x * (2.0 + 0.7 * index) + 6 * draw[index]))
        dune = _mix((0.26, 0.11, 0.05), (0.85, 0.44, 0.17), 0.75 * sunny + 0.22 * ripple)
        sky = _mix(sky, dune, step(0.012, -0.012, y - crest))
    return sky


def _window(x, y, color, draw):
    """A bright room: a wall with a large window to one side, out of focus."""
    side = -1 if draw[0] > 0.5 else 1
    u, v = x * side - 0.58, y - 0.22
    pane = step(0.36, 0.30, abs(u)) * step(0.58, 0.52, abs(v))
    cross = step(0.035, 0.012, abs(u)) + step(0.035, 0.012, abs(v - 0.1))
    outside = _mix((0.55, 0.72, 0.50), (0.95, 1.05, 1.15), step(-0.3, 0.1, v + 0.3 * noise(x * 5, y * 4)))
    wall = _picture(color, x) * (0.95 + 0.25 * step(0.9, -0.9, x * side * -1)) * (0.95 + 0.1 * noise(x * 3, y * 3))
    return _mix(wall, outside, (pane * clip(1 - cross, 0, 1)))


def _stripes(x, y, color, draw):
    xp = space(x)
    wave = step(-0.25, 0.25, xp.sin((x * (draw[0] + 0.4) + y * (draw[1] - 0.5)) * 16))
    return _mix([0.55 * part for part in color], color, wave)


def _shelf(x, y, color, draw):
    """Shelves of books, out of focus."""
    xp = space(x)
    row, place = xp.floor(y * 2.4), x * 9
    shelf = step(0.47, 0.42, abs(y * 2.4 - row - 0.5))
    tall = (y * 2.4 - row) < 0.62 + 0.3 * cells(place, row + 0.5)
    hue = xp.stack([cells(place, row + 20), cells(place, row + 40), cells(place, row + 60)])
    book = (0.05 + 0.30 * hue**2) * (0.6 + 0.4 * step(0.5, 0.2, abs(place - xp.floor(place) - 0.5)))
    wood = _picture((0.10, 0.05, 0.024), x)
    return xp.where((shelf > 0.5) & tall, book, wood * (0.35 + 0.65 * (1 - shelf)))


KINDS = {
    "plain": _plain, "gradient": _gradient, "studio": _studio, "stripes": _stripes, "window": _window, "shelf": _shelf,
    "wall": _wall, "two tone": _two_tone, "black": _black, "bokeh": _bokeh, "city": _city, "rain": _rain,
    "sunset": _sunset, "ocean": _ocean, "mountains": _mountains, "golden": _golden, "stars": _stars,
    "garden": _garden, "farm": _farm, "lightning": _lightning, "desert": _desert,
}  # fmt: skip
