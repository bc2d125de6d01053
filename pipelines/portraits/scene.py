"""Who stands where, and the window of the world that the picture shows."""

from dataclasses import dataclass

from .parameters import Background, Lighting, Person

PEOPLE_APART = 2.35  # head units between neighbours in a portrait of several people


@dataclass(frozen=True)
class Camera:
    """A very long lens: the middle of the picture and half its height, in head units."""

    x: float
    y: float
    half_height: float

    def sees(self, low, high, aspect: float) -> bool:
        """Whether a box of the world, from corner ``low`` to ``high``, is in a picture ``aspect`` as wide as high."""
        wide = aspect * self.half_height
        across = high[0] > self.x - wide and low[0] < self.x + wide
        return across and high[1] > self.y - self.half_height and low[1] < self.y + self.half_height


CAMERAS = {"portrait": Camera(0, -0.20, 2.0), "body": Camera(0, -4.15, 6.25)}


@dataclass(frozen=True)
class Scene:
    """People in one picture; light and background are the scene's, not theirs. ``places``: (x, y, z) of each head."""

    people: tuple[Person, ...]
    places: tuple[tuple[float, float, float], ...]
    lighting: Lighting
    background: Background
    camera: Camera

    def __post_init__(self):
        if not self.people or len(self.people) != len(self.places):
            raise ValueError(f"a scene has {len(self.people)} people and {len(self.places)} places: give one for each.")


def scene_of(person: Person) -> Scene:
    """One person in its own light, before its own background."""
    return Scene((person,), ((0, 0, 0),), person.lighting, person.background, CAMERAS[person.view])


def group_scene(people: list[Person]) -> Scene:
    """People side by side, in the light and view of the first; every second one stands a little behind."""
    if not people:
        raise ValueError("a scene of nobody: give at least one person.")
    first, count = people[0], len(people)
    body = first.view == "body"
    apart = 3.6 if body else PEOPLE_APART
    places = tuple(
        ((index - (count - 1) / 2) * apart, 0.12 * (index % 2), -1.2 * (index % 2)) for index in range(count)
    )
    camera = CAMERAS[first.view]
    half = max(camera.half_height, apart * count / 2 + (0.4 if not body else 0))
    return Scene(
        tuple(people),
        places,
        first.lighting,
        first.background,
        Camera(0, camera.y - (half - camera.half_height) * (not body) * 0.5, half),
    )
