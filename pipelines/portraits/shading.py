"""From surfaces and lights to what the film sees. Only this file knows about light: relighting changes nothing else."""

import math

import torch

from .parameters import Light, Lighting

# How far light creeps around the edge of shadow under skin, by colour.
BLEED = (0.42, 0.20, 0.13)
DOME = (0.0, 0.62, 0.785)  # the one direction that stands for all light from the sky when it is shadowed
SHADOWLESS = 0.45  # lights whose shadows are weaker than this cast none
GRILL_STEP, GRILL_BAR = (0.62, 0.78), 0.15  # distance and width of the window's bars, in head units


class LightRig:
    """The lights of B scenes as tensors: direction [B, L, 3], color [B, L, 3] and one value per light."""

    def __init__(self, lightings: list[Lighting], device):
        count = max([len(lighting.lights) for lighting in lightings], default=0)
        dark = Light(power=0, shadow=0)
        rows = [list(lighting.lights) + [dark] * (count - len(lighting.lights)) for lighting in lightings]

        def tensor(values):
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.count = count
        self.direction = tensor([[_direction(light) for light in row] for row in rows])
        self.color = tensor([[[light.power * part for part in light.color] for light in row] for row in rows])
        self.softness = tensor([[light.softness for light in row] for row in rows])
        self.shadow = tensor([[light.shadow * (light.shadow > SHADOWLESS) for light in row] for row in rows])
        self.grill = tensor([[light.grill for light in row] for row in rows])
        self.sky, self.ground = (
            tensor([getattr(lighting, name) for lighting in lightings])[..., None] for name in ("sky", "ground")
        )
        self.exposure = tensor([lighting.exposure for lighting in lightings])[:, None, None]


def _direction(light: Light) -> tuple[float, float, float]:
    azimuth, elevation = math.radians(light.azimuth), math.radians(light.elevation)
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)


def radiance(rig: LightRig, occluders, point, normal, albedo, reflect) -> torch.Tensor:
    """Light [B, 3, K] that leaves world points [B, 3, K] towards the camera; the arguments are as in ``Surface``."""
    facing = normal[:, 2].clamp(0, 1)
    rim = (1 - facing).square()
    rim = rim * rim.sqrt()
    dome = torch.tensor(DOME, device=point.device).expand(point.shape[0], 3)
    open_sky = 0.30 + 0.70 * occluders.visible(point, dome, torch.ones_like(rig.softness[:, 0]))
    up = (normal[:, 1:2] * 0.5 + 0.5).clamp(0, 1)
    around = torch.lerp(rig.ground, rig.sky, up) * open_sky[:, None]
    bleed = torch.tensor(BLEED, device=point.device)[None, :, None] * reflect[:, 2:3]
    total = around * albedo * (1 + 0.35 * bleed) + around * (rim * (0.12 + 0.5 * reflect[:, 3]))[:, None] * 0.6
    for index in range(rig.count):
        total = total + _one_light(rig, index, occluders, point, normal, albedo, reflect, bleed, rim)
    return total


def _one_light(rig, index, occluders, point, normal, albedo, reflect, bleed, rim):
    direction = rig.direction[:, index]
    cosine = torch.bmm(direction[:, None], normal)
    wrap = bleed + 0.25 * rig.softness[:, index, None, None]
    diffuse = ((cosine + wrap) / (1 + wrap)).clamp(min=0)
    diffuse = diffuse * diffuse.sqrt()
    lit = torch.ones_like(cosine)
    if bool((rig.shadow[:, index] > 0).any()):
        visible = occluders.visible(point, direction, rig.softness[:, index])
        lit = 1 - rig.shadow[:, index, None, None] * (1 - visible[:, None])
    if bool((rig.grill[:, index] > 0).any()):
        lit = lit * (1 - rig.grill[:, index, None, None] * _grill(point, direction)[:, None])
    halfway = torch.nn.functional.normalize(direction + direction.new_tensor([0, 0, 1.0]), dim=1)
    sharp = 5 + 240 * reflect[:, 1:2].pow(3)
    mirror = torch.bmm(halfway[:, None], normal).clamp(min=1e-4).pow(sharp) * reflect[:, 0:1]
    mirror = mirror * (0.35 + 0.022 * sharp) * (cosine > -0.1)
    edge = (rim * (0.10 + 0.45 * reflect[:, 3]))[:, None] * (cosine + 0.35).clamp(0, 1)
    tinted = lit.pow(1 - bleed.clamp(0, 0.5))
    light = rig.color[:, index, :, None]
    return light * (albedo * diffuse * tinted + (mirror * (0.3 + 0.7 * cosine.clamp(0, 1)) + edge * 0.35) * lit)


def _grill(point, direction):
    """Darkness [B, K] of the shadow of a window's bars, 0..1."""
    right = torch.nn.functional.normalize(
        torch.stack([direction[:, 2], 0 * direction[:, 0], -direction[:, 0]], 1), dim=1
    )
    above = torch.cross(direction, right, dim=1)
    dark = torch.zeros_like(point[:, 0])
    for axis, step in ((right, GRILL_STEP[0]), (above, GRILL_STEP[1])):
        place = torch.bmm(axis[:, None], point)[:, 0] / step + 0.28
        away = (place - place.round()).abs() * step
        dark = torch.maximum(dark, ((GRILL_BAR / 2 + 0.025 - away) / 0.05).clamp(0, 1))
    return dark


def film(light: torch.Tensor) -> torch.Tensor:
    """Linear light to a picture in 0..1: a filmic curve and the sRGB transfer function."""
    light = light.clamp(min=0) * 0.82
    curve = (light * (2.51 * light + 0.03)) / (light * (2.43 * light + 0.59) + 0.14)
    curve = curve.clamp(0, 1)
    return torch.where(curve <= 0.0031308, curve * 12.92, 1.055 * curve.clamp(min=1e-6).pow(1 / 2.4) - 0.055)
