"""From surfaces and lights to what the film sees. Only this file knows about light: relighting changes nothing else."""

import math

from .arrays import Array, array, clip, column, cross, device_of, lerp, matmul, replaced, space, unit
from .parameters import Light, Lighting
from .shadows import Occluders

# How far light creeps around the edge of shadow under skin, by colour.
BLEED = (0.42, 0.20, 0.13)
DOME = (0.0, 0.62, 0.785)  # the one direction that stands for all light from the sky when it is shadowed
SHADOWLESS = 0.45  # lights whose shadows are weaker than this cast none
GRILL_STEP, GRILL_BAR = (0.62, 0.78), 0.15  # distance and width of the window's bars, in head units


class LightRig:
    """The lights of B scenes as arrays: direction [B, L, 3], color [B, L, 3] and one value per light."""

    def __init__(self, lightings: list[Lighting], device):
        count = max([len(lighting.lights) for lighting in lightings], default=0)
        dark = Light(power=0, shadow=0)
        rows = [list(lighting.lights) + [dark] * (count - len(lighting.lights)) for lighting in lightings]

        def per_light(value):
            return array([[value(light) for light in row] for row in rows], device)

        self.count = count
        self.direction = per_light(_direction)
        self.color = per_light(lambda light: [light.power * part for part in light.color])
        self.softness = per_light(lambda light: light.softness)
        self.shadow = per_light(lambda light: light.shadow * (light.shadow > SHADOWLESS))
        self.grill = per_light(lambda light: light.grill)
        self.sky, self.ground = (
            array([getattr(lighting, name) for lighting in lightings], device)[..., None] for name in ("sky", "ground")
        )
        self.exposure = array([lighting.exposure for lighting in lightings], device)[:, None, None]

    def arriving(self, occluders: Occluders, point: Array) -> Array:
        """How much of the sky (first) and of every light arrives at points [B, 3, K]: [B, 1 + L, K]."""
        xp = space(point)
        dome = array([DOME] * len(point), device_of(point))
        seen = [occluders.visible(point, dome, xp.ones_like(dome[:, 0]))]
        for index in range(self.count):
            if bool((self.shadow[:, index] > 0).any()):
                seen.append(occluders.visible(point, self.direction[:, index], self.softness[:, index]))
            else:
                seen.append(xp.ones_like(seen[0]))
        return xp.stack(seen, 1)


def _direction(light: Light) -> tuple[float, float, float]:
    azimuth, elevation = math.radians(light.azimuth), math.radians(light.elevation)
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)


def radiance(rig: LightRig, visible, point, normal, albedo, reflect) -> Array:
    """Light [B, 3, K] that leaves world points [B, 3, K] towards the camera.

    ``visible``: of ``LightRig.arriving``; the other arguments are as in ``Surface``.
    """
    xp = space(point)
    rim = (1 - clip(normal[:, 2], 0, 1)) ** 2
    rim = rim * xp.sqrt(rim)
    open_sky = 0.30 + 0.70 * visible[:, 0]
    up = clip(normal[:, 1:2] * 0.5 + 0.5, 0, 1)
    around = lerp(rig.ground, rig.sky, up) * open_sky[:, None]
    bleed = column(BLEED, point) * reflect[:, 2:3]
    total = around * (albedo * (1 + 0.35 * bleed) + (rim * (0.12 + 0.5 * reflect[:, 3]) * 0.6)[:, None])
    for index in range(rig.count):
        total += _one_light(rig, index, visible[:, 1 + index], point, normal, albedo, reflect, bleed, rim)
    return total


def _one_light(rig, index, visible, point, normal, albedo, reflect, bleed, rim):
    xp, direction = space(point), rig.direction[:, index]
    cosine = matmul(direction[:, None], normal)
    wrap = bleed + 0.25 * rig.softness[:, index, None, None]
    diffuse = clip((cosine + wrap) / (1 + wrap), 0)
    diffuse *= xp.sqrt(diffuse)
    lit = (1 - rig.shadow[:, index, None] * (1 - visible))[:, None]
    if bool((rig.grill[:, index] > 0).any()):
        lit = lit * (1 - rig.grill[:, index, None, None] * _grill(point, direction)[:, None])
    halfway = unit((direction + column((0, 0, 1.0), point)[..., 0])[..., None])
    sharp = 5 + 240 * reflect[:, 1:2] ** 3
    mirror = clip(matmul(halfway.swapaxes(1, 2), normal), 1e-4) ** sharp * reflect[:, 0:1]
    mirror = mirror * (0.35 + 0.022 * sharp) * (cosine > -0.1)
    edge = (rim * (0.10 + 0.45 * reflect[:, 3]))[:, None] * clip(cosine + 0.35, 0, 1)
    tinted = lit ** (1 - clip(bleed, 0, 0.5)) if bool((lit < 1).any()) else lit
    light = rig.color[:, index, :, None]
    return light * (albedo * diffuse * tinted + (mirror * (0.3 + 0.7 * clip(cosine, 0, 1)) + edge * 0.35) * lit)


def _grill(point, direction):
    """Darkness [B, K] of the shadow of a window's bars, 0..1."""
    xp = space(point)
    right = unit(xp.stack([direction[:, 2], 0 * direction[:, 0], -direction[:, 0]], 1)[..., None])[..., 0]
    above = cross(direction, right)
    dark = xp.zeros_like(point[:, 0])
    for axis, step in ((right, GRILL_STEP[0]), (above, GRILL_STEP[1])):
        place = matmul(axis[:, None], point)[:, 0] / step + 0.28
        away = abs(place - xp.round(place)) * step
        dark = xp.maximum(dark, clip((GRILL_BAR / 2 + 0.025 - away) / 0.05, 0, 1))
    return dark


def film(light: Array) -> Array:
    """Linear light to a picture in 0..1: a filmic curve and the sRGB transfer function."""
    light = clip(light, 0) * 0.82
    curve = (light * (2.51 * light + 0.03)) / (light * (2.43 * light + 0.59) + 0.14)
    curve = clip(curve, 0, 1)
    bright = 1.055 * clip(curve, 1e-6) ** (1 / 2.4) - 0.055
    return replaced(bright, curve <= 0.0031308, curve * 12.92)
