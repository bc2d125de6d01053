"""What a picture shows, in words: for training text encoders and models on it."""

from .lightings import LIGHTINGS, PLACEHOLDER
from .parameters import Person

COSTUME_WORDS = {
    "flower": "dressed as a {color} flower", "sheep": "dressed as a white sheep", "santa": "dressed as Santa Claus",
    "royal": "in a golden royal costume with a crown",
}  # fmt: skip
EXPRESSION_WORDS = {"neutral": "", "angry": "angry", "shocked": "shocked", "laughing": "laughing", "crying": "crying"}
COLOR_WORDS = {
    "black": (0.03, 0.03, 0.03), "white": (0.8, 0.78, 0.74), "grey": (0.22, 0.22, 0.22), "red": (0.5, 0.04, 0.05),
    "blue": (0.09, 0.20, 0.45), "green": (0.06, 0.27, 0.15), "yellow": (0.75, 0.5, 0.06), "purple": (0.25, 0.08, 0.32),
    "orange": (0.65, 0.22, 0.07), "pink": (0.65, 0.28, 0.36), "brown": (0.34, 0.2, 0.1), "teal": (0.1, 0.34, 0.4),
}  # fmt: skip
VIEW_WORDS = {"portrait": "a portrait of", "body": "a full-body picture of"}


def color_word(color) -> str:
    """The nearest colour that has a name."""
    return min(
        COLOR_WORDS, key=lambda name: sum((a**0.5 - b**0.5) ** 2 for a, b in zip(COLOR_WORDS[name], color, strict=True))
    )


def clothes_words(person: Person) -> str:
    """What the person wears."""
    costume = person.costume
    if costume.kind != "everyday":
        return COSTUME_WORDS[costume.kind].format(color=color_word(costume.primary))
    garment = costume.garment
    patterned = (
        ""
        if costume.pattern == "plain" or garment == "jacket"
        else {"stripes": "striped ", "checks": "checked ", "dots": "dotted "}[costume.pattern]
    )
    if garment == "scarf":
        return f"in a {color_word(costume.primary)} {patterned}top with a {color_word(costume.secondary)} scarf"
    return f"in a {color_word(costume.primary)} {patterned}{garment}"


def describe(person: Person, who: str = PLACEHOLDER) -> str:
    """The person without the scene: "angry <c> in a blue shirt"."""
    return " ".join(word for word in (EXPRESSION_WORDS[person.expression.kind], who, clothes_words(person)) if word)


def lighting_caption(person: Person, who: str = PLACEHOLDER) -> str:
    """IDetail's prompt for the person's light, word for word; ``ValueError`` for a light without one."""
    if person.lighting.name not in LIGHTINGS:
        raise ValueError(f"lighting {person.lighting.name!r} has no prompt: use one of LIGHTINGS, or write a caption.")
    return LIGHTINGS[person.lighting.name].caption(who)


def caption(person, who: str = PLACEHOLDER) -> str:
    """A caption of a ``Person`` or a ``Scene``: view, people, clothes, light. ``who`` stands for each identity."""
    people = getattr(person, "people", (person,))
    shown = " and ".join(f"{_article(words)} {words}" for words in (describe(one, who) for one in people))
    name = person.lighting.name
    light = f", {name} light" if name in LIGHTINGS and name != "studio" else ""
    return f"{VIEW_WORDS[people[0].view]} {shown}{light}"


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"
