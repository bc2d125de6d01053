"""Data sets of the portrait world: many takes of many people, with captions and truth."""

from dataclasses import dataclass

from ..configuration import option
from .captions import full_caption, varied_caption
from .kernels import why_slow
from .landmarks import LANDMARKS
from .parameters import VIEWS, Person
from .render import render
from .sampling import Draw, sample_take


@dataclass(frozen=True)
class PortraitsSettings:
    """Who is shown, and how."""

    population: int = option(0, "seed of the people: other populations share nobody", minimum=0)
    people: int = option(2000, "how many people; item i shows person i modulo this", minimum=1)
    size: int = option(128, "side of the square pictures in pixels", minimum=16, maximum=4096)
    view: str = option("portrait", "what is seen", choices=VIEWS)
    everyday: float = option(0.4, "share of everyday clothes; the costumes share the rest", minimum=0, maximum=1)
    plain_light: float = option(0.2, "share of plain light; all lightings share the rest", minimum=0, maximum=1)


class Portraits:
    """``png`` is the picture, ``txt`` a caption, ``json`` what is known about it.

    The json holds ``caption`` (complete, always in the same order), ``label`` of the person, ``expression``,
    ``costume``, ``lighting``, and pixels of ``landmarks`` {name: [x, y]} and ``face_box`` [x0, y0, x1, y1].
    """

    name = "portraits"
    summary = "takes of the portrait world's people, with captions, labels and landmarks; needs nothing"
    version = 1
    Settings = PortraitsSettings
    count = None
    inputs = ""
    advice = staticmethod(why_slow)

    def __init__(self, settings: PortraitsSettings, device: str = "cpu"):
        """Renders on ``device``."""
        self.settings, self.device = settings, device

    def parameters(self, item: int, seed: int) -> dict:
        """A take is a function of population and item alone, so every data set of a population agrees."""
        return {"person": item % self.settings.people, "take": item}

    def person(self, parameters: dict) -> Person:
        """Who the picture shows."""
        chosen = self.settings
        return sample_take(
            chosen.population, parameters["person"], parameters["take"], chosen.view, chosen.everyday,
            chosen.plain_light,
        )  # fmt: skip

    def make(self, parameters: dict, seed: int) -> dict:
        """Render one take."""
        person = self.person(parameters)
        made = render(person, self.settings.size, self.device)
        points = made.landmarks[0, 0].cpu()
        truth = {
            "caption": full_caption(person), "label": parameters["person"], "expression": person.expression.kind,
            "costume": person.costume.kind, "lighting": person.lighting.name,
            "landmarks": {name: _rounded(point) for name, point in zip(LANDMARKS, points, strict=True)},
            "face_box": _rounded(made.face_box[0, 0].cpu()),
        }  # fmt: skip
        words = Draw("words", self.settings.population, parameters["take"])
        return {"png": made.image[0].cpu(), "txt": varied_caption(person, words), "json": truth}


def _rounded(values) -> list[float]:
    return [round(float(value), 2) for value in values]
