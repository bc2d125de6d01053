"""The portrait world: what the truth promises, and that one edit changes one thing."""

import importlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.pipelines import portraits as world
from likeness.pipelines.portraits import kernels
from likeness.pipelines.portraits.backgrounds import KINDS, background
from likeness.pipelines.portraits.data import Portraits, PortraitsSettings
from likeness.pipelines.portraits.gbuffer import World
from likeness.pipelines.portraits.parameters import VIEWS
from likeness.pipelines.portraits.raycast import MISS, Caster
from likeness.pipelines.portraits.shadows import Occluders
from likeness.pipelines.portraits.shapes import Bone, Group, capsule, ellipsoid, rotation

noise_of = importlib.import_module("likeness.pipelines.portraits.noise")
renderer = importlib.import_module("likeness.pipelines.portraits.render")
SIZE = 96
NODES = Path(__file__).resolve().parents[1] / "nodes"
EXPECTED_FIRST = ("short", "ginger", "hazel", 0.39805210941)


def person(index=3, **changes) -> world.Person:
    plain = {"expression": "neutral", "lighting": "studio", "costume": "everyday", "pose": world.Pose(yaw=10)}
    return world.edited(world.sample_person(7, index), **(plain | changes))


@pytest.fixture(scope="module")
def portrait():
    return world.render(person(), SIZE)


def grown(mask: torch.Tensor, pixels: int = 1) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(mask.float(), 2 * pixels + 1, 1, pixels) > 0


def test_a_person_depends_on_seed_and_index_only():
    people = [world.sample_person(7, index) for index in range(20)]
    assert people[5] == world.sample_person(7, 5)
    assert people[5].identity == world.sample_identity(7, 5)
    assert len({(p.identity.hair_style, p.identity.skin, p.identity.jaw) for p in people}) == 20
    assert world.sample_person(8, 5).identity != people[5].identity


def test_first_person_is_the_same_on_every_machine():
    first = world.sample_identity(0, 0)
    assert (first.hair_style, first.hair_color, first.eye_color) == EXPECTED_FIRST[:3]
    assert first.skin == pytest.approx(EXPECTED_FIRST[3], abs=1e-9)


def test_identity_survives_every_edit():
    before = world.sample_person(7, 1)
    after = world.edited(
        before, yaw=40, lighting="pantone", expression="crying", costume="santa", pose__roll=5, strength=0.5
    )
    assert after.identity == before.identity
    assert (after.pose.yaw, after.pose.roll, after.expression.kind, after.expression.strength) == (40, 5, "crying", 0.5)
    assert (after.costume.kind, after.lighting.name) == ("santa", "pantone")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"yaw": 120}, "yaw is 120: give a number from -75 to 75"),
        ({"expression": "bored"}, "kind is 'bored': choose one of neutral"),
        ({"lighting": "disco"}, "lighting is 'disco': choose one of window grill"),
        ({"primary": (2, 0, 0)}, "primary is .*linear RGB"),
        ({"color": (0.1, 0.1)}, "color is .*three numbers"),
        ({"kind": "x"}, "names no single parameter"),
        ({"nothing": 1}, "names no single parameter"),
        ({"view": "back"}, "view is 'back'"),
    ],
)
def test_what_is_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        person(**change)


def test_shapes_and_ranges(portrait):
    for name, channels in (
        ("image", 3),
        ("alpha", 1),
        ("part", 1),
        ("depth", 1),
        ("normal", 3),
        ("albedo", 3),
        ("iuv", 3),
    ):
        value = getattr(portrait, name)
        assert value.shape == (1, channels, SIZE, SIZE) and torch.isfinite(value.float()).all()
    for value in (portrait.image, portrait.alpha, portrait.albedo, portrait.iuv[:, 1:]):
        assert value.min() >= 0 and value.max() <= 1
    seen = portrait.part > 0
    assert torch.allclose(portrait.normal.norm(dim=1, keepdim=True)[seen], torch.ones(int(seen.sum())), atol=1e-4)


def test_masks_partition_the_image(portrait):
    seen = portrait.part > 0
    assert torch.equal(seen, portrait.depth > MISS)
    assert torch.equal(seen, portrait.person == 1)
    assert torch.equal(seen, portrait.iuv[:, :1] > 0)
    total = sum(portrait.mask(part) for part in world.Part)
    assert torch.equal(total, torch.ones_like(total))
    inside, outside = ~grown(~seen), ~grown(seen)
    # Inside, only a ray in a crease between two pieces may slip through.
    assert (portrait.alpha[inside] == 1).float().mean() > 0.995 and (portrait.alpha[outside] == 0).all()
    border = portrait.alpha[~inside & ~outside]
    assert ((border > 0) & (border < 1)).any()
    assert not (portrait.costume & portrait.expression).any()


def test_every_feature_of_a_face_is_there(portrait):
    for part in (*world.FACE_PARTS[:4], world.Part.NECK, world.Part.TORSO):
        assert portrait.mask(part).sum() > 3, part.name


def test_light_changes_the_image_and_nothing_else(portrait):
    other = world.render(person(lighting="pantone"), SIZE)
    for name in ("alpha", "part", "depth", "normal", "albedo", "iuv", "landmarks", "visible", "face_box"):
        assert torch.equal(getattr(other, name), getattr(portrait, name)), name
    assert (other.image - portrait.image).abs().mean() > 0.05


@pytest.mark.parametrize("expression", world.EXPRESSIONS[1:])
def test_expression_changes_the_face_only(portrait, expression):
    other = world.render(person(expression=expression), SIZE)
    changed = ((other.image - portrait.image).abs() > 1e-3).any(1, keepdim=True)
    assert not (changed & ~grown(other.expression | portrait.expression)).any()
    assert changed.sum() > 50


def test_costume_leaves_the_face_and_its_shape_alone(portrait):
    for kind in world.COSTUMES[1:]:
        other = world.render(person(costume=kind), SIZE)
        face = (portrait.mask(world.Part.FACE) * other.mask(world.Part.FACE)).bool()
        assert face.sum() > 300
        assert torch.allclose(other.depth[face], portrait.depth[face], atol=1e-4)
        same = (other.albedo - portrait.albedo).abs().amax(1, keepdim=True)[face]
        assert (same < 1e-3).float().mean() > 0.99


def test_landmarks_lie_on_their_features(portrait):
    points, seen = portrait.landmarks[0, 0], portrait.visible[0, 0]
    assert seen[:5].all()
    for index in (0, 1):
        x, y = points[index].long()
        assert portrait.part[0, 0, y, x] == world.Part.EYES
    assert points[0, 0] < points[2, 0] < points[1, 0] and points[0, 1] < points[2, 1] < points[3, 1]
    x0, y0, x1, y1 = portrait.face_box[0, 0]
    assert ((points[:5, 0] > x0) & (points[:5, 0] < x1) & (points[:5, 1] > y0) & (points[:5, 1] < y1)).all()


def test_far_eye_is_hidden_in_profile():
    seen = world.render(person(pose=world.Pose(yaw=75)), SIZE).visible[0, 0]
    assert seen[0] and not seen[1]


def test_normals_are_the_slope_of_the_depth(portrait):
    """On bare skin, away from edges: finite differences of the depth against the normals."""
    inner = ~grown(portrait.mask(world.Part.FACE) == 0, 2)
    pixel = 4.0 / SIZE
    depth = portrait.depth
    slope = (depth.roll(-1, 3) - depth.roll(1, 3)) / (2 * pixel)
    expected = -portrait.normal[:, :1] / portrait.normal[:, 2:]
    steep = portrait.normal[:, 2:] < 0.6
    assert (slope - expected).abs()[inner & ~steep].median() < 0.03


def lookup(texture: world.Render, target: world.Render, reach: float):
    """Colours of ``texture`` at the nearest (I, U, V) of every pixel of ``target``, and the target's own."""
    known, asked = (r.iuv[0].flatten(1).T[r.part.flatten() > 0] for r in (texture, target))
    own, colors = (r.albedo[0].flatten(1).T[r.part.flatten() > 0] for r in (target, texture))
    distance = torch.cdist(asked * torch.tensor([10.0, 1, 1]), known * torch.tensor([10.0, 1, 1]))
    nearest, index = distance.min(1)
    near = nearest < reach
    return colors[index[near]], own[near], near.float().mean()


def test_iuv_carries_colours_from_one_pose_to_another():
    body = person(view="body", pose=world.Pose(), costume=world.Costume(garment="turtleneck"))
    texture = world.render(body, 256)
    moved = world.render(world.edited(body, turn=25, left_swing=40, right_knee=30, right_shoulder=70), 160)
    found, own, share = lookup(texture, moved, 0.02)
    assert share > 0.4
    error = (found - own).abs().amax(1)
    assert error.median() < 0.02 and (error < 0.08).float().mean() > 0.85


def test_body_shows_the_parts_of_densepose():
    charts = set()
    for turn in (0, 180):
        body = world.render(person(view="body", pose=world.Pose(turn=turn)), 192)
        charts |= set(body.iuv[:, 0].unique().int().tolist())
    assert charts == set(range(25))


@pytest.mark.parametrize("turn", [0, 180])
def test_who_faces_the_camera_shows_the_front_of_the_body_and_who_turns_away_the_back(turn):
    """DensePose's numbers: torso 1 and 2, legs 7 to 14, back before front; of the head 23 is the person's right."""
    part = world.render(person(view="body", pose=world.Pose(turn=turn)), 192).iuv[0, 0].int()
    behind, before = (1, 7, 8, 11, 12), (2, 9, 10, 13, 14)
    back, front = (sum(int((part == number).sum()) for number in numbers) for numbers in (behind, before))
    assert (front > 10 * back) if turn == 0 else (back > 10 * front)
    right, left = ((part == number).nonzero()[:, 1].float().mean() for number in (23, 24))
    assert (right < left) == (turn == 0)


def test_the_box_of_a_face_ends_where_its_pixels_do(portrait):
    rows, columns = portrait.mask(*world.FACE_PARTS, world.Part.BEARD)[0, 0].nonzero(as_tuple=True)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert portrait.face_box[0, 0].tolist() == [float(side) for side in expected]


def test_several_people_in_one_picture():
    people = [person(index) for index in (1, 2, 3)]
    found = world.render(world.group_scene(people), (SIZE, 2 * SIZE))
    assert found.image.shape == (1, 3, SIZE, 2 * SIZE)
    assert found.label.tolist() == [[1, 2, 3]] and set(found.person.unique().tolist()) == {0, 1, 2, 3}
    assert (found.face_box[0, :-1, 2] < found.face_box[0, 1:, 0] + SIZE // 8).all()
    mixed = world.render([people[0], world.group_scene(people[:2])], 48)
    assert mixed.label.tolist() == [[1, -1], [1, 2]]


def test_a_batch_is_its_pictures():
    """The way of other devices, all at once, on the CPU."""
    people = [world.sample_person(3, index) for index in range(4)]
    at_once = renderer._render([world.scene_of(one) for one in people], 64, 64, torch.device("cpu"))
    one_by_one = world.render(people, 64)
    assert (at_once.part != one_by_one.part).float().mean() < 2e-3
    assert ((at_once.image - one_by_one.image).abs() > 1 / 255).float().mean() < 4e-3
    assert torch.allclose(at_once.landmarks, one_by_one.landmarks, atol=1e-2)


def test_a_picture_does_not_depend_on_its_neighbours():
    people = [world.sample_person(3, index) for index in range(3)]
    assert torch.equal(world.render(people, 48).image[1], world.render(people[1], 48).image[0])


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(kernels, "_found", lambda: (None, "switched off"))


@pytest.mark.skipif(kernels.kernels() is None, reason=kernels.why_slow())
@pytest.mark.parametrize("view", VIEWS)
def test_compiled_pictures_are_those_of_arrays(view, request):
    """All kinds of hair, costumes, glasses and beards, from all sides: what rays meet, and how it is lit."""
    draw, people = world.Draw("compiled"), []
    for index in range(24):
        one = world.sample_take(5, index, index, view, everyday=0.3)
        if index % 3 == 0:
            one = replace(one, pose=replace(one.pose, yaw=draw.number(-75, 75), turn=draw.number(-180, 180)))
        people.append(one)
    compiled = world.render(people, 64)
    request.getfixturevalue("without_numba")
    arrays = world.render(people, 64)
    assert torch.equal(compiled.image, arrays.image) is False  # so they were made in two ways
    assert (compiled.part != arrays.part).float().mean() < 2e-4
    assert ((compiled.depth - arrays.depth).abs() > 1e-3).float().mean() < 4e-4
    assert ((compiled.albedo - arrays.albedo).abs() > 1e-3).float().mean() < 4e-4
    assert ((compiled.image - arrays.image).abs() > 1 / 255).float().mean() < 4e-4
    assert torch.allclose(compiled.landmarks, arrays.landmarks, atol=1e-2)


@pytest.mark.skipif(kernels.kernels() is None, reason=kernels.why_slow())
@pytest.mark.parametrize("bumps, carves, mirrored, melt", [
    (0, 0, False, 0.05), (0, 0, False, 0.01), (0, 0, False, 0.004),
    (4, 0, True, 0.04), (0, 3, False, 0.06), (3, 2, True, 0.05),
])  # fmt: skip
def test_compiled_fields_and_rays_are_those_of_arrays(bumps, carves, mirrored, melt, request):
    """Values, slopes and weights at free points; whether and where rays meet the surface: 1,003 of each."""
    draw = np.random.default_rng(bumps + 10 * carves)

    def shape(size):
        center, turn = draw.uniform(-0.6, 0.6, 3), rotation(*draw.uniform(-90, 90, 3))
        if draw.random() < 0.5:
            return ellipsoid(center, draw.uniform(0.5, 1, 3) * size, (0, 0, 0), turn)
        return capsule(center, center + draw.uniform(0.2, 0.5, 3), 0.5 * size)

    group = Group(
        "blob", Bone(rotation(25, 15, 5), np.array([0.1, -0.2, 0.3])), "felt", 1, [shape(0.4) for _ in range(7)], melt,
        [(shape(0.3), 0.03) for _ in range(bumps)], [shape(0.3) for _ in range(carves)], mirrored=mirrored,
    )  # fmt: skip
    points = draw.uniform(-1.2, 1.2, (1, 3, 1003)).astype(np.float32)
    x, y = points[:, 0], points[:, 1]
    compiled = Caster([group], None)
    request.getfixturevalue("without_numba")
    arrays = Caster([group], None)
    assert type(compiled.march) is not type(arrays.march)
    for name in ("value", "gradient", "weights"):
        there, here = (getattr(caster.sample(points), name) for caster in (compiled, arrays))
        assert np.abs(there - here).max() < 2e-3, name
    hits = [caster.cast(x, y, np.full_like(x, MISS), 5e-3) for caster in (compiled, arrays)]
    met = [set(found.index[0][found.hit[0]].tolist()) for found in hits]
    assert len(met[0]) > 200 and len(met[0] ^ met[1]) <= 3
    depths = [dict(zip(found.index[0].tolist(), found.depth[0].tolist(), strict=True)) for found in hits]
    apart = np.array([abs(depths[0][ray] - depths[1][ray]) for ray in met[0] & met[1]])
    assert np.quantile(apart, 0.99) < 1e-3


@pytest.mark.skipif(kernels.kernels() is None, reason=kernels.why_slow())
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_compiled_noise_is_that_of_arrays(dimensions, without_numba):
    from likeness.pipelines.portraits import compiled

    places = np.random.default_rng(dimensions).uniform(-40, 40, (dimensions, 1003)).astype(np.float32)
    assert np.allclose(compiled.noise(places, noise_of._table(None)), noise_of.noise(*places), atol=1e-5)


def test_rays_that_meet_no_box_end_nowhere(without_numba):
    """Bodies seen small have pieces whose boxes some rays pass, but whose shapes none."""
    for index in range(40):
        world.render(world.sample_take(11, index, index, "body"), 16)


@pytest.mark.skipif(kernels.kernels() is None, reason=kernels.why_slow())
def test_faces_are_smooth_where_their_halves_meet(request):
    """At an odd size the middle column of a face seen from the front lies on its mirror plane."""
    people = [person(index, pose=world.Pose(yaw=0, pitch=0, roll=0)) for index in range(6)]
    compiled = world.render(people, 65)
    request.getfixturevalue("without_numba")
    assert ((compiled.normal - world.render(people, 65).normal).abs().amax(1) > 2e-2).sum() <= 6


PICTURES = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import pack; pack.load_pack()
from likeness.pipelines.portraits import kernels, render, sample_person
made = render([sample_person(0, index) for index in range(4)], 64)
print(kernels.ON_DISK, kernels.why_slow() == "", hashlib.sha256(made.image.numpy().tobytes()).hexdigest())
"""


def pictures_of_a_process(cache, **more) -> list[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **more}
    done = subprocess.run([sys.executable, "-c", PICTURES, str(NODES)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(kernels.kernels() is None, reason=kernels.why_slow())
def test_who_compiles_and_who_loads_make_the_same_pictures_and_damage_is_no_harm(tmp_path):
    compiling = pictures_of_a_process(tmp_path)
    assert compiling[:2] == ["True", "True"] and pictures_of_a_process(tmp_path) == compiling
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[:50])
    damaged = pictures_of_a_process(tmp_path)
    assert damaged[1:] == compiling[1:]


@pytest.mark.parametrize(("broken", "told"), [
    (None, r"half the speed, and it is not installed: .*-m pip install numba"),
    (OSError("llvmlite is not there"), "and it cannot be loaded: llvmlite is not there"),
])  # fmt: skip
def test_who_waits_for_pictures_is_told_of_numba(monkeypatch, broken, told):
    plain = importlib.import_module

    def importing(name):
        if name == "numba":
            raise broken or ModuleNotFoundError("No module named 'numba'")
        return plain(name)

    monkeypatch.setattr(kernels.importlib, "import_module", importing)
    kernels._found.cache_clear()
    try:
        assert kernels.kernels() is None and re.search(told, world.why_slow())
        assert Portraits(PortraitsSettings()).advice() == world.why_slow()
    finally:
        kernels._found.cache_clear()


@pytest.mark.skipif(kernels.kernels() is None, reason=kernels.why_slow())
def test_numbers_of_the_compiled_renderer_are_those_of_the_other():
    from likeness.pipelines.portraits import compiled, fields, lines, march

    assert (compiled.LOWEST, compiled.END, compiled.SLOW) == (fields.FAINT, lines.END, march.SLOW)
    assert compiled.ROUNDS == march.ROUNDS and compiled.PRIMES == noise_of.PRIMES


def test_sizes_show_the_same_picture():
    small, large = (world.render(person(), size).image for size in (64, 192))
    shrunk = torch.nn.functional.avg_pool2d(large, 3)
    assert (shrunk - small).abs().mean() < 0.02


def test_ray_meets_an_ellipsoid_where_algebra_says():
    turn = rotation(30, 10, 20)
    group = Group(
        "ball", Bone(turn, torch.tensor([0.1, 0.2, 0.3]).numpy()), "felt", 1, [ellipsoid((0, 0, 0), (0.5, 0.8, 0.3))]
    )
    x = torch.linspace(-0.1, 0.4, 7)[None]
    hits = Caster([group], torch.device("cpu")).cast(x, torch.full_like(x, 0.3), torch.full_like(x, MISS), 1e-3)
    matrix = torch.tensor(group.shapes[0].matrix @ turn.T)
    points = torch.stack([x[0], torch.full((7,), 0.3), hits.depth[0]]).double() - torch.tensor([[0.1], [0.2], [0.3]])
    assert hits.hit.all()
    assert torch.allclose((matrix @ points).norm(dim=0), torch.ones(7, dtype=torch.float64), atol=2e-3)


def test_shadow_of_a_ball():
    group = Group("ball", Bone(rotation(), torch.zeros(3).numpy()), "felt", 1, [ellipsoid((0, 1, 0), (0.5, 0.5, 0.5))])
    occluders = Occluders([[group]], torch.device("cpu"))
    points = torch.tensor([[0.0, 2.0, 0.0], [-1.0, -1.0, 3.0], [0.0, 0.0, 0.0]])[None]
    light = torch.tensor([[0.0, 1.0, 0.0]])
    assert occluders.visible(points, light, torch.zeros(1)).tolist() == [[0, 1, 1]]


def test_fifteen_prompts_of_the_paper():
    assert len(world.PAPER_LIGHTINGS) == 15 and len(world.TRAINING_LIGHTINGS) == 7
    caption = world.lighting_caption(person(lighting="window grill"))
    assert caption == "a photo of a <c> with dramatic window grill shadow on the face"
    assert world.lighting_caption(person(lighting="pantone"), "man").startswith("a colorful portrait of a man in red")
    free = person(lighting=replace(world.Lighting(), name="mine"))
    with pytest.raises(ValueError, match="'mine' has no prompt"):
        world.lighting_caption(free)
    assert world.caption(person(costume="santa")) == "a portrait of a <c> dressed as Santa Claus"


def test_every_lighting_renders_and_they_differ():
    images = world.render([person(lighting=name) for name in world.PAPER_LIGHTINGS], 32).image
    assert torch.isfinite(images).all()
    distance = (images[:, None] - images[None]).abs().mean((2, 3, 4)) + torch.eye(15)
    assert distance.min() > 0.02


def test_backgrounds():
    for kind in KINDS:
        picture = background(world.Background(kind), 24, 40)
        assert picture.shape == (3, 24, 40) and torch.isfinite(picture).all() and picture.min() >= 0, kind
    with pytest.raises(ValueError, match="choose one of plain"):
        background(world.Background("moon base"), 8, 8)


def test_render_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="at least 16 pixels"):
        world.render(person(), 8)
    with pytest.raises(ValueError, match="at least one person"):
        world.group_scene([])


def test_pieces_out_of_the_picture_cost_nothing():
    names = {piece.group.name for piece in World([world.scene_of(person())], torch.device("cpu")).pieces}
    assert "head" in names and "foot_left" not in names
