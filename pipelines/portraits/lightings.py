"""The 15 lighting prompts of IDetail (appendix A) as lights and backgrounds, and two plain ones of ours.

The first seven are the paper's training prompts. ``{}`` stands for the person: the placeholder ``<c>``, or words.
"""

from dataclasses import dataclass

from .parameters import Background, Light, Lighting

PLACEHOLDER = "<c>"


@dataclass(frozen=True)
class LightingPrompt:
    """One lighting by name: the caption, the light and what is behind."""

    prompt: str
    lighting: Lighting
    background: Background

    def caption(self, who: str = PLACEHOLDER) -> str:
        """The prompt with its placeholder filled in."""
        return self.prompt.replace("{}", who)


def _entry(name, prompt, kind, lights, sky, ground, exposure=1.0, color=(0.3, 0.36, 0.44)):
    lighting = Lighting(name, tuple(Light(*values) for values in lights), sky, ground, exposure)
    return name, LightingPrompt(prompt, lighting, Background(kind, color))


# Light: azimuth, elevation, colour, power, softness, darkness of its shadow, darkness of the window's bars.
_WARM, _ORANGE, _MOON, _RED, _BLUE = (
    (1.0, 0.72, 0.42),
    (1.0, 0.46, 0.16),
    (0.55, 0.70, 1.0),
    (1.0, 0.06, 0.08),
    (0.06, 0.16, 1.0),
)
_PINK, _CYAN, _SUN = (1.0, 0.15, 0.55), (0.1, 0.75, 1.0), (1.0, 0.86, 0.66)

LIGHTINGS: dict[str, LightingPrompt] = dict([
    _entry("window grill", "a photo of a {} with dramatic window grill shadow on the face", "wall",
           [(-38, 24, _SUN, 2.1, 0.04, 1, 0.94), (70, 0, _MOON, 0.12, 1, 0.2, 0)],
           (0.10, 0.11, 0.14), (0.08, 0.07, 0.06), 1.0, (0.46, 0.40, 0.33)),
    _entry("pantone", "a colorful portrait of a {} in red and blue light, dramatic lighting", "two tone",
           [(-72, 12, _RED, 2.6, 0.3, 1, 0), (72, 12, _BLUE, 3.0, 0.3, 1, 0), (0, 20, (1, 0.8, 0.9), 0.16, 1, 0.3, 0)],
           (0.035, 0.02, 0.05), (0.03, 0.02, 0.05)),
    _entry("neon bokeh", "cinematic bokeh a {}, bright city lights at night, film, bokeh, professional, 4k, "
           "highly detailed", "bokeh",
           [(-62, 8, _PINK, 1.6, 0.4, 0.8, 0), (66, 14, _CYAN, 1.3, 0.4, 0.8, 0),
            (8, 32, (1, 0.85, 0.7), 0.45, 0.8, 0.6, 0)],
           (0.05, 0.05, 0.09), (0.06, 0.03, 0.06)),
    _entry("city night", "a portrait of a {} in middle of a city, night time, street, cars, dark tone, dramatic "
           "lighting, highly detailed, 4k", "city",
           [(34, 48, (1.0, 0.70, 0.38), 1.0, 0.35, 1, 0), (-110, 15, (0.35, 0.55, 1.0), 1.1, 0.3, 0.5, 0)],
           (0.045, 0.05, 0.08), (0.05, 0.035, 0.025)),
    _entry("sunset silhouettes", "a {} outdoors during sunset, with the face partially silhouetted against the warm "
           "orange and pink hues, creating soft but visible shadows", "sunset",
           [(152, 14, _ORANGE, 3.2, 0.3, 0.3, 0), (-128, 10, (1, 0.4, 0.3), 1.6, 0.4, 0.3, 0)],
           (0.085, 0.06, 0.075), (0.06, 0.035, 0.03)),
    _entry("dark shadow", "a dark portrait of a {}, vantablack background, highly detailed, 4K", "black",
           [(-66, 30, (1, 0.93, 0.85), 1.15, 0.25, 1, 0)], (0.012, 0.012, 0.014), (0.008, 0.008, 0.008)),
    _entry("rainy day", "a {} in a rainy city night, wet rain drops on a {}, highly detailed, 4k", "rain",
           [(-30, 50, (0.62, 0.78, 1.0), 0.75, 0.9, 0.7, 0), (115, 16, (1.0, 0.55, 0.3), 1.0, 0.4, 0.4, 0)],
           (0.10, 0.12, 0.16), (0.05, 0.05, 0.06)),
    _entry("ocean sunset", "a {} at a beautiful sunset at the beach, dramatic lighting, highly detailed, 4K", "ocean",
           [(58, 16, (1.0, 0.52, 0.22), 2.1, 0.3, 0.9, 0), (-60, 20, (0.5, 0.5, 0.9), 0.22, 1, 0.3, 0)],
           (0.16, 0.12, 0.16), (0.12, 0.08, 0.06)),
    _entry("mountain sunset", "a cinematic portrait of a {} in backdrop of colourful mountains at dramatic sunset, "
           "sunlight falling on the face of a {}, dramatic lighting, amazing sky, studio, 4k", "mountains",
           [(-44, 20, (1.0, 0.60, 0.30), 2.0, 0.2, 1, 0), (150, 25, (0.8, 0.4, 0.7), 0.8, 0.5, 0.3, 0)],
           (0.13, 0.11, 0.19), (0.08, 0.06, 0.07)),
    _entry("golden hour", "a cinematic portrait of a {} at golden hour, light falling on the face of a {}, dramatic "
           "shadows, amazing sky, studio, 4k", "golden",
           [(48, 26, (1.0, 0.70, 0.34), 2.3, 0.2, 1, 0), (-140, 20, _WARM, 1.0, 0.4, 0.3, 0)],
           (0.17, 0.16, 0.16), (0.15, 0.10, 0.05)),
    _entry("night sky", "a cinematic portrait of a {} in the backdrop of a dramatic night sky with stars and moon, "
           "dramatic shadow on the face, super realistic, highly detailed, 4k", "stars",
           [(52, 34, _MOON, 0.85, 0.12, 1, 0), (-150, 25, (0.4, 0.55, 1.0), 0.7, 0.3, 0.4, 0)],
           (0.028, 0.036, 0.07), (0.014, 0.016, 0.03)),
    _entry("garden", "a cinematic portrait of a {} in a garden with colourful flowers, golden hour, dramatic shadow on "
           "the face, highly realistic, 4k", "garden",
           [(-50, 32, (1.0, 0.80, 0.48), 2.0, 0.2, 1, 0), (130, 20, (0.9, 1.0, 0.6), 0.7, 0.5, 0.3, 0)],
           (0.20, 0.24, 0.22), (0.10, 0.15, 0.06)),
    _entry("rural farm", "a portrait of a {} at dusk in rural farm, with soft shadows and a serene natural setting, "
           "4k, super realistic, high resolution", "farm",
           [(-25, 30, (1.0, 0.78, 0.66), 0.75, 1, 0.7, 0), (120, 10, (1.0, 0.55, 0.40), 0.7, 0.5, 0.3, 0)],
           (0.27, 0.27, 0.36), (0.16, 0.14, 0.09)),
    _entry("lightning flash", "a portrait of a {} outdoors with a sudden flash of lightning casting stark, dramatic "
           "shadows and illuminating the face", "lightning",
           [(-56, 44, (0.80, 0.86, 1.0), 3.4, 0.0, 1, 0)], (0.035, 0.04, 0.07), (0.02, 0.02, 0.03)),
    _entry("desert sunrise", "a portrait of a {}, witnessing a desert sunset with a mirage-like glow, surrounded by "
           "intricate sandy textures and warm tones, 4k, super realistic, high resolution", "desert",
           [(-64, 14, (1.0, 0.58, 0.28), 2.0, 0.3, 1, 0), (20, -20, (1.0, 0.7, 0.4), 0.3, 1, 0.1, 0)],
           (0.22, 0.17, 0.14), (0.24, 0.15, 0.08)),
    _entry("studio", "a studio portrait of a {}", "studio",
           [(-36, 34, (1.0, 0.96, 0.90), 1.25, 0.45, 0.9, 0), (62, 8, (0.9, 0.94, 1.0), 0.34, 1, 0.3, 0),
            (158, 34, (1.0, 0.96, 0.92), 0.9, 0.4, 0.2, 0)], (0.32, 0.34, 0.37), (0.22, 0.19, 0.17)),
    _entry("daylight", "a photo of a {} in soft daylight", "window",
           [(-55, 28, (1.0, 0.97, 0.93), 1.25, 0.8, 0.8, 0), (80, 10, (1, 0.9, 0.8), 0.25, 1, 0.3, 0)],
           (0.38, 0.40, 0.43), (0.26, 0.22, 0.18)),
])  # fmt: skip
PAPER_LIGHTINGS = tuple(LIGHTINGS)[:15]
TRAINING_LIGHTINGS = PAPER_LIGHTINGS[:7]
