"""The painted face: eyes, brows, lips, beard shadow, freckles. Drawn in the plane of the face."""

from .arrays import clip, column, either, fraction, lerp, replaced, space, unbind
from .noise import cells, noise
from .parts import Part
from .surface import Surface, cover, step, surface

EYEBALL = 0.23  # radius in head units
IRIS, PUPIL = 0.096, 0.045


def head(point, normal, albedo, part: int, texture) -> Surface:
    """Skin of the head with everything that is drawn on it. ``point``, ``normal`` [B, 3, K] in the head's space."""
    x, y, z = unbind(point)
    made = surface(_complexion(x, y, z, texture), normal, part, (0.13, 0.36, 1.0, 0.0))
    _regions(made, x, y, z, texture)
    front = (z > 0.25) & (normal[:, 2] > 0.05)
    _features(made, front, x, y, texture)
    return made


def _complexion(x, y, z, texture):
    """Skin with its uneven tone: blush, rosy nose and ears, freckles, a mole, age."""
    xp = space(x)
    skin, dark = texture["skin"], texture["dark"]
    tone = 0.94 + 0.12 * noise(x * 5, y * 5, z * 5)
    ax = abs(x)
    cheek = xp.exp(-(((ax - 0.42) / 0.20) ** 2) - ((y + 0.27) / 0.17) ** 2)
    tip = xp.exp(-((x / 0.13) ** 2) - ((y - texture["nose_y"]) / 0.11) ** 2)
    red = (texture["blush"] + texture["flush"]) * cheek + (0.25 + 0.4 * texture["tears"]) * tip
    red = (red + 0.35 * step(0.76, 0.86, ax)) * step(-0.1, 0.2, z + ax) * (1 - 0.45 * dark)
    albedo = skin * tone[:, None]
    tint = xp.stack([1 + 0.02 * red, 1 - 0.36 * red, 1 - 0.34 * red], 1)
    albedo = albedo * tint
    if bool((texture["freckles"] > 0).any()):
        where = step(0.55, 0.1, abs(y + 0.17) * 2 + ax * 0.35) * texture["freckles"]
        spot = step(0.62, 0.78, noise(x * 26, y * 26)) * where * (z > 0.3)
        albedo = albedo * (1 - 0.45 * spot)[:, None]
    return albedo * (1 - _lines(x, y, z, texture))[:, None]


def _lines(x, y, z, texture):
    """Darkness of wrinkles on the forehead and beside the eyes, 0..1."""
    xp = space(x)
    age = clip(texture["age"] - 0.45, 0) + 0.35 * clip(texture["raise"], 0) * texture["age"]
    forehead = step(0.86, 0.98, xp.cos((y - 0.42 + 0.05 * x**2) * 48)) * step(0.5, 0.35, abs(y - 0.56) * 2.6)
    forehead = forehead * step(0.5, 0.3, abs(x))
    beside = abs(x) - texture["eye_x"] - texture["eye_w"]
    crow = step(0.8, 1.0, xp.cos((y - texture["eye_y"]) * 75 / (1 + abs(beside) * 3)))
    crow = crow * step(0.13, 0.03, abs(beside - 0.06) * 1.2) * step(0.12, 0.05, abs(y - texture["eye_y"]))
    return clip((forehead * 0.35 * age + crow * 0.4 * age) * (z > 0.2), 0, 0.6)


def _regions(made, x, y, z, texture):
    """Ears and the hair's roots."""
    cover(made, (abs(x) > 0.76) & (abs(y) < 0.32) & (z < 0.3), part=Part.EARS)
    line = 0.66 - 0.18 * x**2 - 0.05 * noise(x * 9, y * 9)
    roots = step(0.0, 0.12, y - line - (z - 0.45) * 0.55) * texture["scalp"] * (abs(x) < 0.79)
    tone = texture["hair"] * (0.7 + 0.6 * cells(x * 60, y * 60, z * 60))[:, None]
    made.albedo = lerp(made.albedo, tone, (roots * (either(texture["scalp"] == 0.8, 0.95, 0.55)))[:, None])
    cover(made, (roots > 0.5) & (texture["scalp"] == 0.8), part=Part.HAIR, reflect=(0.06, 0.2, 0.3, 0.3))


def _features(made, front, x, y, texture):
    for paint in (_beard_shadow, _mole, _nostrils, _lips, _brows, _eyes, _tears):
        paint(made, x, y, front, texture)


def _mole(made, x, y, front, texture):
    xp = space(x)
    if not bool((texture["mole"] > 0).any()):
        return
    place = xp.floor(texture["mole"] * 3.999)
    at_x = either(place < 2, 0.30, -0.33) * either(place % 2 < 1, 1.0, 0.7)
    at_y = either(place % 2 < 1, -0.46, -0.22)
    near = ((x - at_x) ** 2 + (y - at_y) ** 2 < 0.0008) & front & (texture["mole"] > 0)
    cover(made, near, texture["skin"] * 0.28)


def _nostrils(made, x, y, front, texture):
    hole = ((abs(x) - 0.062) / 0.034) ** 2 + ((y - texture["nose_y"] + 0.055) / 0.020) ** 2
    made.albedo = made.albedo * (1 - 0.75 * step(1.3, 0.6, hole) * front)[:, None]


def _beard_shadow(made, x, y, front, texture):
    """Short hair on chin, cheeks and upper lip."""
    xp = space(x)
    mouth, stubble, strong = texture["mouth_y"], texture["stubble"], texture["moustache"]
    if not bool((stubble + strong > 0).any()):
        return
    jaw = step(0.02, -0.16, y - mouth - 0.02 - 0.75 * clip(abs(x) - 0.2, 0))
    lip = step(0.10, 0.04, abs(y - mouth - 0.115 + 0.5 * x**2)) * step(0.36, 0.27, abs(x))
    lower = step(0.14, 0.09, xp.sqrt((x / 1.3) ** 2 + (y - mouth + 0.10) ** 2)) * (y < mouth)
    amount = xp.maximum(jaw * (1 - 0.9 * lower) * stubble, lip * xp.maximum(strong, stubble))
    grain = cells(x * 75, y * 60)
    hairy = (
        clip(amount * (0.62 + 0.55 * grain), 0, 0.93) * front * (either(stubble > 0.6, 1.0, 0.45) + 0.4 * lip * strong)
    )
    hairy = clip(hairy, 0, 0.93)
    made.albedo = lerp(made.albedo, texture["hair"] * (0.6 + 0.7 * grain)[:, None], hairy[:, None])
    cover(made, hairy > 0.5, part=Part.BEARD, reflect=(0.08, 0.2, 0.2, 0.3))


def _lips(made, x, y, front, texture):
    """Lips and what shows between them: teeth, tongue, dark."""
    xp = space(x)
    width = texture["mouth_w"] * texture["mouth_width"]
    u = x / width
    arc = clip(1 - u**2, 0)
    opened = texture["mouth_open"]
    corner = u**2 * (texture["smile"] * (0.085 + 0.05 * opened))
    line = texture["mouth_y"] + corner - 0.02 * texture["smile"]
    up, down = opened * 0.075 * xp.sqrt(arc), opened * 0.235 * xp.sqrt(arc)
    full = 1 + 0.4 * texture["lip_fullness"]
    bow = 1 - 0.32 * xp.exp(-((u / 0.16) ** 2)) + 0.12 * xp.exp(-(((abs(u) - 0.28) / 0.2) ** 2))
    top = line + up + 0.072 * full * arc**0.8 * bow
    bottom = line - down - 0.095 * full * arc**0.6
    lips = (y < top) & (y > bottom) & (abs(u) < 1) & front
    dark = texture["dark"]
    natural = texture["skin"] * xp.stack([0.86 + 0.14 * dark, 0.44 + 0.22 * dark, 0.44 + 0.30 * dark], 1)
    painted = column([0.50, 0.035, 0.05], x) * (1 - 0.35 * dark[:, None])
    color = lerp(natural, painted, clip(texture["lip_color"] - 0.25, 0, 1)[:, None])
    shade = either(y > line, 0.80, 1.08) * (0.9 + 0.2 * noise(x * 40, y * 4))
    cover(made, lips, color * shade[:, None], Part.LIPS, (0.3, 0.5, 0.8, 0.0))
    seam = front & (abs(u) < 1.02) & (abs(y - line) < 0.013) & (opened < 0.3)
    cover(made, seam, color * 0.28, Part.LIPS)
    _inside_mouth(made, x, y, line + up, line - down, front & (abs(u) < 1) & (opened > 0.05), texture)


def _inside_mouth(made, x, y, top, bottom, where, texture):
    xp = space(x)
    inner = where & (y < top) & (y > bottom)
    height = clip(top - bottom, 1e-4)
    depth = (top - y) / height
    cavity = column([0.09, 0.012, 0.014], x)
    cover(made, inner, cavity, Part.MOUTH, (0.0, 0.1, 0.0, 0.0))
    tongue = inner & (((x / 0.17) ** 2 + ((y - bottom) / (0.45 * height)) ** 2) < 1) & (height > 0.1)
    cover(made, tongue, column([0.50, 0.10, 0.11], x), reflect=(0.3, 0.5, 0.5, 0))
    gritted = height < 0.13
    row = xp.where(gritted, 1.1, texture["teeth"] * 0.42)
    teeth = inner & (depth < row) & (texture["teeth"] > 0.2)
    gap = 1 - 0.25 * step(0.42, 0.5, abs(fraction(x * 13 + 0.5) - 0.5))
    gap = gap * either(gritted & (abs(depth - 0.5) < 0.06), 0.6, 1.0)
    white = column([0.86, 0.83, 0.76], x) * gap[:, None]
    cover(made, teeth, white, reflect=(0.4, 0.6, 0.2, 0))


def _brows(made, x, y, front, texture):
    """Brows of short strokes; raised, drawn together or up in the middle by the expression."""
    u = (abs(x) - texture["eye_x"] - 0.015) / (texture["eye_w"] * 1.22)
    arch = 0.02 + 0.035 * texture["brow_arch"]
    height = texture["eye_y"] + 0.235 + 0.09 * texture["raise"] + arch * (1 - u**2) - 0.03 * clip(u, 0) ** 2
    height = height + (0.085 * texture["furrow"] - 0.10 * texture["inner_up"]) * u + 0.015 * texture["tilt"] * u
    inward = 0.03 * texture["furrow"]
    thick = (0.047 + 0.020 * texture["brow_thickness"]) * (1.0 - 0.45 * clip(u, 0, 1)) * step(1.08, 0.75, u)
    thick = thick * step(-1.15 - inward * 4, -0.85 - inward * 4, u)
    fray = 0.80 + 0.4 * noise(x * 45 + abs(y) * 30, y * 14)
    brow = (abs(y - height) < thick * fray) & front
    tone = texture["hair"] * 0.75 * (0.7 + 0.6 * noise(x * 55 + y * 25, y * 20))[:, None]
    cover(made, brow, tone * 0.9 + texture["skin"] * 0.06, Part.BROWS, (0.08, 0.2, 0.1, 0.2))


def _eyes(made, x, y, front, texture):
    """Eyeballs between almond lids, with their own round normals, so that every light makes its own catchlight."""
    xp = space(x)
    side = either(x < 0, -1.0, 1.0)
    out = abs(x) - texture["eye_x"]
    up = y - texture["eye_y"] - texture["tilt"] * 0.16 * out
    u = out / texture["eye_w"]
    arc = 1 - u**2
    height, lift = texture["eye_h"] * texture["lid"], texture["squint"] * 0.055 * arc
    top = height * (1 - abs(u) ** 2.4) * (1 - 0.10 * u) + lift
    bottom = -0.80 * height * arc + lift * 1.15
    _lids(made, up, u, arc, top, bottom, front, texture)
    eye = (up < top) & (up > bottom) & (abs(u) < 1) & front
    if not bool(eye.any()):
        return
    near = clip(up, -0.16, 0.16), clip(out, -0.16, 0.16)
    forward = xp.sqrt(clip(EYEBALL**2 - near[0] ** 2 - near[1] ** 2, 1e-3))
    ball = xp.stack([side * near[1], near[0], forward], 1) / EYEBALL
    made.normal = xp.where(eye[:, None], ball, made.normal)
    color = _eyeball(side * out - 0.055 * texture["gaze_x"], up - 0.03 * texture["gaze_y"] - 0.004, texture)
    lid_shadow = 1 - 0.48 * step(0.055, 0.0, top - up)
    cover(made, eye, color * lid_shadow[:, None], Part.EYES, (1.6, 0.95, 0.15, 0.0))


def _eyeball(dx, dy, texture):
    """Colour of white, iris and pupil at an offset from the pupil's centre."""
    xp = space(dx)
    radius = xp.hypot(dx, dy)
    white = lerp(texture["skin"], column([0.86, 0.85, 0.84], dx), 0.93)
    veins = 1 - texture["tears"][:, None] * column([0.0, 0.16, 0.14], dx)
    streak = noise(xp.arctan2(dy, dx) * 7, radius * 18)
    glow = (0.62 + 0.8 * streak * step(0.02, 0.09, radius) + 0.55 * step(0.02, -0.07, dy)) * step(
        IRIS * 1.06, IRIS * 0.8, radius
    )
    iris = texture["iris"] * (0.22 + glow)[:, None]
    color = xp.where((radius < IRIS)[:, None], iris, white * veins)
    return replaced(color, (radius < PUPIL)[:, None], 0.008)


def _lids(made, up, u, arc, top, bottom, front, texture):
    """Lid crease, lashes and the line under the eye."""
    beyond = 1.12 - abs(u)
    crease = step(0.020, 0.004, abs(up - top - 0.055 * clip(arc, 0))) * step(0, 0.2, beyond) * (up > top)
    shadow = step(0.12, 0.0, (up - top)) * (up > top) * step(-0.05, 0.35, beyond) * 0.22
    bag = step(0.018, 0.002, abs(up - bottom + 0.075)) * step(0.1, 0.5, arc) * (0.10 + 0.3 * texture["age"])
    made.albedo = made.albedo * ((1 - 0.38 * crease - shadow - 0.5 * bag) * front + ~front)[:, None]
    wing = 0.010 + 0.014 * texture["lashes"] * (1 + clip(u, 0))
    lash = front & (abs(u) < 1.10) & (up > top - 0.006) & (up < top + wing * step(1.14, 0.8, abs(u)))
    lower = front & (abs(u) < 1.0) & (abs(up - bottom) < 0.005) & (u > -0.6)
    cover(made, lash | lower, texture["hair"] * 0.12 + 0.012, Part.EYES, (0.1, 0.3, 0.0, 0.0))


def _tears(made, x, y, front, texture):
    xp = space(x)
    if not bool((texture["tears"] > 0).any()):
        return
    out = abs(x) - texture["eye_x"] - 0.03
    fall = texture["eye_y"] - texture["eye_h"] * 0.4 - y
    wide = 0.020 + 0.022 * step(0.2, 0.42, fall) + 0.006 * xp.sin(fall * 30)
    stream = (abs(out - 0.03 * xp.sin(fall * 5)) < wide) & (fall > 0) & (fall < 0.30 + 0.17 * texture["tears"])
    stream = stream & front & (texture["tears"] > 0.1) & (made.part != int(Part.EYES))
    water = made.albedo * 0.55 + column([0.30, 0.40, 0.48], x) * 0.75
    cover(made, stream, water, reflect=(1.3, 0.85, 0.3, 0.0))
