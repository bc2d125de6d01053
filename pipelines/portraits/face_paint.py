"""The painted face: eyes, brows, lips, beard shadow, freckles. Drawn in the plane of the face."""

import torch

from .noise import cells, noise
from .parts import Part
from .surface import Surface, cover, step, surface

EYEBALL = 0.23  # radius in head units
IRIS, PUPIL = 0.096, 0.045


def head(point, normal, albedo, part: int, texture) -> Surface:
    """Skin of the head with everything that is drawn on it. ``point``, ``normal`` [B, 3, K] in the head's space."""
    x, y, z = point.unbind(1)
    made = surface(_complexion(x, y, z, texture), normal, part, (0.13, 0.36, 1.0, 0.0))
    _regions(made, x, y, z, texture)
    front = (z > 0.25) & (normal[:, 2] > 0.05)
    _features(made, front, x, y, texture)
    return made


def _complexion(x, y, z, texture):
    """Skin with its uneven tone: blush, rosy nose and ears, freckles, a mole, age."""
    skin, dark = texture["skin"], texture["dark"]
    tone = 0.94 + 0.12 * noise(x * 5, y * 5, z * 5)
    ax = x.abs()
    cheek = torch.exp(-((ax - 0.42) / 0.20).square() - ((y + 0.27) / 0.17).square())
    tip = torch.exp(-(x / 0.13).square() - ((y - texture["nose_y"]) / 0.11).square())
    red = (texture["blush"] + texture["flush"]) * cheek + (0.25 + 0.4 * texture["tears"]) * tip
    red = (red + 0.35 * step(0.76, 0.86, ax)) * step(-0.1, 0.2, z + ax) * (1 - 0.45 * dark)
    albedo = skin * tone[:, None]
    tint = torch.stack([1 + 0.02 * red, 1 - 0.36 * red, 1 - 0.34 * red], 1)
    albedo = albedo * tint
    if bool((texture["freckles"] > 0).any()):
        where = step(0.55, 0.1, (y + 0.17).abs() * 2 + ax * 0.35) * texture["freckles"]
        spot = step(0.62, 0.78, noise(x * 26, y * 26)) * where * (z > 0.3)
        albedo = albedo * (1 - 0.45 * spot)[:, None]
    return albedo * (1 - _lines(x, y, z, texture))[:, None]


def _lines(x, y, z, texture):
    """Darkness of wrinkles on the forehead and beside the eyes, 0..1."""
    age = (texture["age"] - 0.45).clamp(min=0) + 0.35 * texture["raise"].clamp(min=0) * texture["age"]
    forehead = step(0.86, 0.98, torch.cos((y - 0.42 + 0.05 * x.square()) * 48)) * step(
        0.5, 0.35, (y - 0.56).abs() * 2.6
    )
    forehead = forehead * step(0.5, 0.3, x.abs())
    beside = x.abs() - texture["eye_x"] - texture["eye_w"]
    crow = step(0.8, 1.0, torch.cos((y - texture["eye_y"]) * 75 / (1 + beside.abs() * 3)))
    crow = crow * step(0.13, 0.03, (beside - 0.06).abs() * 1.2) * step(0.12, 0.05, (y - texture["eye_y"]).abs())
    return ((forehead * 0.35 * age + crow * 0.4 * age) * (z > 0.2)).clamp(0, 0.6)


def _regions(made, x, y, z, texture):
    """Ears and the hair's roots."""
    cover(made, (x.abs() > 0.76) & (y.abs() < 0.32) & (z < 0.3), part=Part.EARS)
    line = 0.66 - 0.18 * x.square() - 0.05 * noise(x * 9, y * 9)
    roots = step(0.0, 0.12, y - line - (z - 0.45) * 0.55) * texture["scalp"] * (x.abs() < 0.79)
    tone = texture["hair"] * (0.7 + 0.6 * cells(x * 60, y * 60, z * 60))[:, None]
    made.albedo = torch.lerp(made.albedo, tone, (roots * (0.55 + 0.4 * (texture["scalp"] == 0.8)))[:, None])
    cover(made, (roots > 0.5) & (texture["scalp"] == 0.8), part=Part.HAIR, reflect=(0.06, 0.2, 0.3, 0.3))


def _features(made, front, x, y, texture):
    for paint in (_beard_shadow, _mole, _nostrils, _lips, _brows, _eyes, _tears):
        paint(made, x, y, front, texture)


def _mole(made, x, y, front, texture):
    if not bool((texture["mole"] > 0).any()):
        return
    place = (texture["mole"] * 3.999).floor()
    at_x = torch.where(place < 2, 0.30, -0.33) * torch.where(place % 2 < 1, 1.0, 0.7)
    at_y = torch.where(place % 2 < 1, -0.46, -0.22)
    near = ((x - at_x).square() + (y - at_y).square() < 0.0008) & front & (texture["mole"] > 0)
    cover(made, near, texture["skin"] * 0.28)


def _nostrils(made, x, y, front, texture):
    hole = ((x.abs() - 0.062) / 0.034).square() + ((y - texture["nose_y"] + 0.055) / 0.020).square()
    made.albedo = made.albedo * (1 - 0.75 * step(1.3, 0.6, hole) * front)[:, None]


def _beard_shadow(made, x, y, front, texture):
    """Short hair on chin, cheeks and upper lip."""
    mouth, stubble, strong = texture["mouth_y"], texture["stubble"], texture["moustache"]
    if not bool((stubble + strong > 0).any()):
        return
    jaw = step(0.02, -0.16, y - mouth - 0.02 - 0.75 * (x.abs() - 0.2).clamp(min=0))
    lip = step(0.10, 0.04, (y - mouth - 0.115 + 0.5 * x.square()).abs()) * step(0.36, 0.27, x.abs())
    lower = step(0.14, 0.09, ((x / 1.3).square() + (y - mouth + 0.10).square()).sqrt()) * (y < mouth)
    amount = (jaw * (1 - 0.9 * lower) * stubble).maximum(lip * strong.maximum(stubble))
    grain = cells(x * 75, y * 60)
    hairy = (
        (amount * (0.62 + 0.55 * grain)).clamp(0, 0.93) * front * (0.45 + 0.55 * (stubble > 0.6) + 0.4 * lip * strong)
    )
    hairy = hairy.clamp(0, 0.93)
    made.albedo = torch.lerp(made.albedo, texture["hair"] * (0.6 + 0.7 * grain)[:, None], hairy[:, None])
    cover(made, hairy > 0.5, part=Part.BEARD, reflect=(0.08, 0.2, 0.2, 0.3))


def _lips(made, x, y, front, texture):
    """Lips and what shows between them: teeth, tongue, dark."""
    width = texture["mouth_w"] * texture["mouth_width"]
    u = x / width
    arc = (1 - u.square()).clamp(min=0)
    opened = texture["mouth_open"]
    corner = u.square() * (texture["smile"] * (0.085 + 0.05 * opened))
    line = texture["mouth_y"] + corner - 0.02 * texture["smile"]
    up, down = opened * 0.075 * arc.sqrt(), opened * 0.235 * arc.sqrt()
    full = 1 + 0.4 * texture["lip_fullness"]
    bow = 1 - 0.32 * torch.exp(-(u / 0.16).square()) + 0.12 * torch.exp(-((u.abs() - 0.28) / 0.2).square())
    top = line + up + 0.072 * full * arc.pow(0.8) * bow
    bottom = line - down - 0.095 * full * arc.pow(0.6)
    lips = (y < top) & (y > bottom) & (u.abs() < 1) & front
    dark = texture["dark"]
    natural = texture["skin"] * torch.stack([0.86 + 0.14 * dark, 0.44 + 0.22 * dark, 0.44 + 0.30 * dark], 1)
    painted = texture["skin"].new_tensor([0.50, 0.035, 0.05])[None, :, None] * (1 - 0.35 * dark[:, None])
    color = torch.lerp(natural, painted, (texture["lip_color"] - 0.25).clamp(0, 1)[:, None])
    shade = torch.where(y > line, 0.80, 1.08) * (0.9 + 0.2 * noise(x * 40, y * 4))
    cover(made, lips, color * shade[:, None], Part.LIPS, (0.3, 0.5, 0.8, 0.0))
    seam = front & (u.abs() < 1.02) & ((y - line).abs() < 0.013) & (opened < 0.3)
    cover(made, seam, color * 0.28, Part.LIPS)
    _inside_mouth(made, x, y, line + up, line - down, front & (u.abs() < 1) & (opened > 0.05), texture)


def _inside_mouth(made, x, y, top, bottom, where, texture):
    inner = where & (y < top) & (y > bottom)
    height = (top - bottom).clamp(min=1e-4)
    depth = (top - y) / height
    cavity = made.albedo.new_tensor([0.09, 0.012, 0.014])[None, :, None].expand_as(made.albedo)
    cover(made, inner, cavity, Part.MOUTH, (0.0, 0.1, 0.0, 0.0))
    tongue = inner & (((x / 0.17).square() + ((y - bottom) / (0.45 * height)).square()) < 1) & (height > 0.1)
    cover(
        made, tongue, cavity.new_tensor([0.50, 0.10, 0.11])[None, :, None].expand_as(cavity), reflect=(0.3, 0.5, 0.5, 0)
    )
    gritted = height < 0.13
    row = torch.where(gritted, depth * 0 + 1.1, texture["teeth"] * 0.42)
    teeth = inner & (depth < row) & (texture["teeth"] > 0.2)
    gap = 1 - 0.25 * step(0.42, 0.5, (torch.remainder(x * 13 + 0.5, 1) - 0.5).abs())
    gap = gap * torch.where(gritted & ((depth - 0.5).abs() < 0.06), 0.6, 1.0)
    white = made.albedo.new_tensor([0.86, 0.83, 0.76])[None, :, None] * gap[:, None]
    cover(made, teeth, white, reflect=(0.4, 0.6, 0.2, 0))


def _brows(made, x, y, front, texture):
    """Brows of short strokes; raised, drawn together or up in the middle by the expression."""
    u = (x.abs() - texture["eye_x"] - 0.015) / (texture["eye_w"] * 1.22)
    arch = 0.02 + 0.035 * texture["brow_arch"]
    height = (
        texture["eye_y"] + 0.235 + 0.09 * texture["raise"] + arch * (1 - u.square()) - 0.03 * u.clamp(min=0).square()
    )
    height = height + (0.085 * texture["furrow"] - 0.10 * texture["inner_up"]) * u + 0.015 * texture["tilt"] * u
    inward = 0.03 * texture["furrow"]
    thick = (0.047 + 0.020 * texture["brow_thickness"]) * (1.0 - 0.45 * u.clamp(0, 1)) * step(1.08, 0.75, u)
    thick = thick * step(-1.15 - inward * 4, -0.85 - inward * 4, u)
    fray = 0.80 + 0.4 * noise(x * 45 + y.abs() * 30, y * 14)
    brow = ((y - height).abs() < thick * fray) & front
    tone = texture["hair"] * 0.75 * (0.7 + 0.6 * noise(x * 55 + y * 25, y * 20))[:, None]
    cover(made, brow, tone * 0.9 + texture["skin"] * 0.06, Part.BROWS, (0.08, 0.2, 0.1, 0.2))


def _eyes(made, x, y, front, texture):
    """Eyeballs between almond lids, with their own round normals, so that every light makes its own catchlight."""
    side = torch.where(x < 0, -1.0, 1.0)
    out = x.abs() - texture["eye_x"]
    up = y - texture["eye_y"] - texture["tilt"] * 0.16 * out
    u = out / texture["eye_w"]
    arc = 1 - u.square()
    height, lift = texture["eye_h"] * texture["lid"], texture["squint"] * 0.055 * arc
    top = height * (1 - u.abs().pow(2.4)) * (1 - 0.10 * u) + lift
    bottom = -0.80 * height * arc + lift * 1.15
    _lids(made, up, u, arc, top, bottom, front, texture)
    eye = (up < top) & (up > bottom) & (u.abs() < 1) & front
    if not bool(eye.any()):
        return
    near = up.clamp(-0.16, 0.16), out.clamp(-0.16, 0.16)
    forward = (EYEBALL**2 - near[0].square() - near[1].square()).clamp(min=1e-3).sqrt()
    ball = torch.stack([side * near[1], near[0], forward], 1) / EYEBALL
    made.normal = torch.where(eye[:, None], ball, made.normal)
    color = _eyeball(side * out - 0.055 * texture["gaze_x"], up - 0.03 * texture["gaze_y"] - 0.004, texture)
    lid_shadow = 1 - 0.48 * step(0.055, 0.0, top - up)
    cover(made, eye, color * lid_shadow[:, None], Part.EYES, (1.6, 0.95, 0.15, 0.0))


def _eyeball(dx, dy, texture):
    """Colour of white, iris and pupil at an offset from the pupil's centre."""
    radius = torch.hypot(dx, dy)
    white = torch.lerp(texture["skin"], texture["skin"].new_tensor([0.86, 0.85, 0.84])[None, :, None], 0.93)
    veins = 1 - texture["tears"][:, None] * white.new_tensor([0.0, 0.16, 0.14])[None, :, None]
    streak = noise(torch.atan2(dy, dx) * 7, radius * 18)
    glow = (0.62 + 0.8 * streak * step(0.02, 0.09, radius) + 0.55 * step(0.02, -0.07, dy)) * step(
        IRIS * 1.06, IRIS * 0.8, radius
    )
    iris = texture["iris"] * (0.22 + glow)[:, None]
    color = torch.where((radius < IRIS)[:, None], iris, white * veins)
    return torch.where((radius < PUPIL)[:, None], torch.full_like(color, 0.008), color)


def _lids(made, up, u, arc, top, bottom, front, texture):
    """Lid crease, lashes and the line under the eye."""
    beyond = 1.12 - u.abs()
    crease = step(0.020, 0.004, (up - top - 0.055 * arc.clamp(min=0)).abs()) * step(0, 0.2, beyond) * (up > top)
    shadow = step(0.12, 0.0, (up - top)) * (up > top) * step(-0.05, 0.35, beyond) * 0.22
    bag = step(0.018, 0.002, (up - bottom + 0.075).abs()) * step(0.1, 0.5, arc) * (0.10 + 0.3 * texture["age"])
    made.albedo = made.albedo * ((1 - 0.38 * crease - shadow - 0.5 * bag) * front + ~front)[:, None]
    wing = 0.010 + 0.014 * texture["lashes"] * (1 + u.clamp(min=0))
    lash = front & (u.abs() < 1.10) & (up > top - 0.006) & (up < top + wing * step(1.14, 0.8, u.abs()))
    lower = front & (u.abs() < 1.0) & ((up - bottom).abs() < 0.005) & (u > -0.6)
    cover(made, lash | lower, texture["hair"] * 0.12 + 0.012, Part.EYES, (0.1, 0.3, 0.0, 0.0))


def _tears(made, x, y, front, texture):
    if not bool((texture["tears"] > 0).any()):
        return
    out = x.abs() - texture["eye_x"] - 0.03
    fall = texture["eye_y"] - texture["eye_h"] * 0.4 - y
    wide = 0.020 + 0.022 * step(0.2, 0.42, fall) + 0.006 * torch.sin(fall * 30)
    stream = ((out - 0.03 * torch.sin(fall * 5)).abs() < wide) & (fall > 0) & (fall < 0.30 + 0.17 * texture["tears"])
    stream = stream & front & (texture["tears"] > 0.1) & (made.part != int(Part.EYES))
    water = made.albedo * 0.55 + made.albedo.new_tensor([0.30, 0.40, 0.48])[None, :, None] * 0.75
    cover(made, stream, water, reflect=(1.3, 0.85, 0.3, 0.0))
