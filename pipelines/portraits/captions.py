"""What a picture shows, in words: for training text encoders and models on it."""

import re

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
LIGHT_WORDS = {
    "window grill": "with window grill shadow on the face", "pantone": "in red and blue light",
    "neon bokeh": "before bright city lights at night", "city night": "in a city street at night",
    "sunset silhouettes": "as a silhouette at sunset", "dark shadow": "in dark shadow before a black background",
    "rainy day": "in a rainy city night", "ocean sunset": "at the beach at sunset",
    "mountain sunset": "before mountains at sunset", "golden hour": "at golden hour",
    "night sky": "before a night sky with stars and moon", "garden": "in a garden with colourful flowers",
    "rural farm": "at dusk in a rural farm", "lightning flash": "in a flash of lightning",
    "desert sunrise": "in the desert at sunrise", "studio": "in studio light", "daylight": "in soft daylight",
}  # fmt: skip
HAIR_WORDS = {
    "bald": "bald", "buzz": "very short {color} hair", "short": "short {color} hair", "quiff": "a {color} quiff",
    "side part": "parted {color} hair", "curly": "curly {color} hair", "afro": "a {color} afro",
    "bob": "a {color} bob", "long": "long {color} hair", "wavy": "wavy {color} hair", "bun": "{color} hair in a bun",
    "ponytail": "a {color} ponytail", "pigtails": "{color} pigtails",
}  # fmt: skip
BEARD_WORDS = {"stubble": "stubble", "short": "a short beard", "full": "a full beard"}


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


def appearance(person: Person) -> str:
    """Who it is in words: "old person with a grey bob and round glasses"."""
    who = person.identity
    age = "old " if who.age > 0.6 else "young " if who.age < 0.15 else ""
    bald = "bald " if who.hair_style == "bald" else ""
    features = [] if bald else [HAIR_WORDS[who.hair_style].format(color=who.hair_color)]
    features += [BEARD_WORDS[who.beard]] if who.beard != "none" else []
    features += ["a moustache"] if who.moustache > 0 else []
    features += [f"{who.glasses} glasses"] if who.glasses != "none" else []
    *first, last = features or [""]
    shown = f"{', '.join(first)} and {last}" if first else last
    return f"{age}{bald}person" + (f" with {shown}" if shown else "")


def varied_caption(person: Person, draw) -> str:
    """One of the many ways to put a portrait into words; ``draw``: a ``sampling.Draw``.

    The person is the placeholder, "person" or described; light is in words of ours or one of IDetail's prompts.
    """
    style = draw.number()
    who = PLACEHOLDER if style < 0.3 else "person" if style < 0.5 else appearance(person)
    mood = EXPRESSION_WORDS[person.expression.kind] or draw.pick(("", "calm"))
    clothes = clothes_words(person) if draw.chance(0.85) or person.costume.kind != "everyday" else ""
    words = " ".join(word for word in (mood, who, clothes) if word)
    if draw.chance(0.3):
        return _with_articles(LIGHTINGS[person.lighting.name].caption(words))
    opening = draw.pick(("a portrait of a", "a portrait of a", "a photo of a", "a"))
    return _with_articles(f"{opening} {words} {LIGHT_WORDS[person.lighting.name]}")


def full_caption(person: Person) -> str:
    """Everything that words can tell of a portrait, always in the same order: to tell captions apart."""
    mood = EXPRESSION_WORDS[person.expression.kind] or "calm"
    words = f"{mood} {appearance(person)} {clothes_words(person)}"
    return _with_articles(f"a portrait of a {words} {LIGHT_WORDS[person.lighting.name]}")


def _with_articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)
