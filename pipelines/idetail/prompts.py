"""What IDetail is asked with: 15 effects of the paper (7 of them trained), and 60 lights for the inputs of training.

Every prompt names the person by the placeholder ``a <c>``, three ordinary tokens of CLIP (paper, section 4.3).
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..portraits.lightings import LIGHTINGS, PAPER_LIGHTINGS, PLACEHOLDER, TRAINING_LIGHTINGS

PLACEHOLDER_PROMPT = f"a {PLACEHOLDER}"
_INPUTS = Path(__file__).with_name("input_prompts.json")


@dataclass(frozen=True)
class RelightPrompt:
    """A prompt by its name; ``{}`` in ``text`` stands for the person."""

    name: str
    text: str

    def caption(self, who: str = PLACEHOLDER) -> str:
        """The prompt with its person in place, after the article that fits: ``a <c>``, ``a <c> and a <c>``."""
        return self.text.replace("{}", who)


@cache
def input_table() -> tuple[dict, ...]:
    """The data file of the 60 input prompts, with the light that each means in the portrait world (``world.py``)."""
    return tuple(json.loads(_INPUTS.read_text(encoding="utf-8")))


# Paper, appendix A: the first seven are trained on, the other eight only tested.
EFFECTS = {name: RelightPrompt(name, LIGHTINGS[name].prompt) for name in PAPER_LIGHTINGS}
TARGET_PROMPTS = tuple(EFFECTS[name] for name in TRAINING_LIGHTINGS)
UNSEEN_PROMPTS = tuple(prompt for name, prompt in EFFECTS.items() if name not in TRAINING_LIGHTINGS)
# Ours: the paper uses 60 of IC-Light's, which it does not print.
INPUT_PROMPTS = tuple(RelightPrompt(row["name"], row["prompt"]) for row in input_table())


def people_words(count: int, who: str = PLACEHOLDER) -> str:
    """The words for several people, to stand after an article: ``<c> and a <c>``. ``ValueError`` below 1."""
    if count < 1:
        raise ValueError(f"the number of people is {count}: give at least 1.")
    return " and a ".join([who] * count)


def relight_prompt(effect: str, people: int = 1, extra: str = "", who: str = PLACEHOLDER) -> str:
    """The prompt of an effect by its name (``EFFECTS``, or "" for the placeholder alone), and free text after it.

    Raises ``ValueError`` for an effect that is not there.
    """
    if effect and effect not in EFFECTS:
        raise ValueError(f"effect is {effect!r}: choose one of {', '.join(EFFECTS)}, or none and write it in words.")
    words = people_words(people, who)
    text = EFFECTS[effect].caption(words) if effect else f"a {words}"
    return f"{text}, {extra.strip()}" if extra.strip() else text
