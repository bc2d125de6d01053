"""The portrait world: parameters in, a picture and the complete truth about it out.

``parameters``  what a person and a scene are made of, with ranges
``sampling``    people at random from (seed, index), and edits that leave the rest alone
``lightings``   IDetail's 15 lighting prompts; ``captions`` puts a scene into words
``skeleton``    parameters to bones and groups of ellipsoids and capsules (``skin``, ``hair``, ``wardrobe``)
``arrays``      one vocabulary for numpy (the processor) and torch (other devices), in which the maths is written
``raycast``     nearest hits on the distance fields of the groups (``shapes``, ``fields``; ``march``, ``lines``: along
                a ray); ``compiled`` does the same on a processor at twice the speed, where ``kernels`` finds numba
``gbuffer``     what every ray finds: part, albedo, normal, depth, IUV (``surface``, ``face_paint``, ``iuv``)
``shading``     light, and the film (``shadows``); ``backgrounds`` what is behind
``antialias``   the light of rays, and four more rays where there is an edge
``render``      all of it in order, with masks, landmarks and boxes
``data``        the data set of many takes of many people

A person is rebuilt at will with one thing changed, so counterfactuals exist: another light changes the picture and no
other map by a bit; another expression only the head's skin and the beard; another costume clothes, hair and what these
hide or shade, never the shape or the colours of the face.
"""

from .captions import appearance, caption, full_caption, lighting_caption, varied_caption
from .kernels import why_slow
from .landmarks import LANDMARKS
from .lightings import LIGHTINGS, PAPER_LIGHTINGS, PLACEHOLDER, TRAINING_LIGHTINGS
from .parameters import COSTUMES, EXPRESSIONS, Background, Costume, Expression, Identity, Light, Lighting, Person, Pose
from .parts import FACE_PARTS, HEAD_PARTS, Part
from .render import Render, render
from .sampling import (
    Draw,
    edited,
    lit,
    sample_background,
    sample_costume,
    sample_identity,
    sample_person,
    sample_pose,
    sample_take,
)
from .scene import Camera, Scene, group_scene, scene_of

__all__ = [
    "COSTUMES", "EXPRESSIONS", "FACE_PARTS", "HEAD_PARTS", "LANDMARKS", "LIGHTINGS", "PAPER_LIGHTINGS", "PLACEHOLDER",
    "TRAINING_LIGHTINGS", "Background", "Camera", "Costume", "Draw", "Expression", "Identity", "Light", "Lighting",
    "Part", "Person", "Pose", "Render", "Scene", "appearance", "caption", "edited", "full_caption", "group_scene",
    "lighting_caption", "lit", "render", "sample_background", "sample_costume", "sample_identity", "sample_person",
    "sample_pose", "sample_take", "scene_of", "varied_caption", "why_slow",
]  # fmt: skip
