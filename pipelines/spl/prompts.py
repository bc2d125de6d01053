"""The tokens of a prompt, which of them make up which word, and how two prompts correspond."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

_PUNCTUATION = ".,;:!?\"'()[]{}"


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as a text encoder reads it.

    ids: all tokens up to the closing one, the opening one included, without the padding behind it.
    length: number of tokens with padding; what the model's cross-attention sees.
    words: every word with the positions of its tokens, in order.
    """

    ids: tuple[Hashable, ...]
    length: int
    words: tuple[tuple[str, tuple[int, ...]], ...]

    def positions(self, word: str) -> list[int]:
        """Positions of all tokens of ``word``, wherever it occurs; ``ValueError`` if it does not."""
        found = [places for name, places in self.words if name.lower() == word.strip(_PUNCTUATION).lower()]
        if not found:
            names = ", ".join(dict.fromkeys(name for name, _ in self.words)) or "(the prompt is empty)"
            raise ValueError(f"the word {word!r} is not in the prompt. Its words are: {names}.")
        if not all(found):
            raise ValueError(f"the word {word!r} stands behind the end of what the text encoder reads: shorten it.")
        return [position for places in found for position in places]


def read_prompt(
    text: str, ids: Sequence[Hashable], end: int, encode: Callable[[str], Sequence[Hashable]]
) -> PromptTokens:
    """Find every space-separated word of ``text`` in its token ``ids``.

    ``ids``: the whole padded sequence; ``end``: index of its closing token; ``encode(word)``: tokens of one word,
    nothing around them. Text encoders split at spaces first, so the words' tokens come in the order of ``ids``, with
    only opening, closing and padding tokens between. Punctuation around a word does not belong to it.
    """
    words, cursor = [], 0
    for word in text.split():
        name, places = word.strip(_PUNCTUATION), []
        for token in encode(word):
            if token in ids[cursor:end]:
                cursor = ids.index(token, cursor) + 1
                places.append(cursor - 1)
        if name:
            words.append((name, tuple(_inner(places, list(encode(word)), list(encode(name))))))
    return PromptTokens(tuple(ids[: end + 1]), len(ids), tuple(words))


def _inner(places: list[int], tokens: list[Hashable], inner: list[Hashable]) -> list[int]:
    """The part of ``places`` that belongs to ``inner``, the same word without punctuation; all if it merges with it."""
    for start in range(len(tokens) - len(inner) + 1):
        if tokens[start : start + len(inner)] == inner:
            return places[start : start + len(inner)]
    return places


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int]:
    """For every target token the position of its partner in ``source``, or -1 (Hertz et al. 2023; notes 2.9).

    Global alignment (Needleman and Wunsch 1970): match +1, mismatch -1, gap 0. Among equal scores a gap in the source
    goes before a gap in the target, and that before a pair.
    """
    score = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            score[i][j] = max(score[i][j - 1], score[i - 1][j], score[i - 1][j - 1] + (1 if a == b else -1))
    mapper, i, j = [-1] * len(target), len(source), len(target)
    while j > 0:
        if i == 0 or score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            mapper[j] = i
    return mapper


def alignment(source: PromptTokens, target: PromptTokens) -> list[int]:
    """``align`` for all of the target's positions: padding belongs to the same place of the source's padding."""
    padding = range(len(target.ids), target.length)
    return align(source.ids, target.ids) + [j if j < source.length else -1 for j in padding]
