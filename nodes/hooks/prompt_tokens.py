"""The tokens of a prompt as ComfyUI's CLIP object makes them."""

from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...pipelines.spl.prompts import PromptTokens, read_prompt


def read_clip_prompt(clip, text: str) -> PromptTokens:
    """Tokens and words of ``text``, ComfyUI's weights ("(word:1.2)") and embeddings ("embedding:name") included.

    Of several text encoders the one whose tokens the model attends to counts: T5 for Flux, otherwise the first (the
    two of SDXL have the same tokens).
    """
    name = _attended(clip.tokenize(""))
    opening, closing = _frame(clip, name)
    chunks = [[_key(token) for token, *_ in chunk] for chunk in clip.tokenize(text)[name]]
    before = sum(len(chunk) for chunk in chunks[:-1])
    end = before + chunks[-1].index(closing, opening)

    def encode(word: str) -> list:
        word = word.replace("(", "\\(").replace(")", "\\)")
        tokens = [_key(token) for chunk in clip.tokenize(word)[name] for token, *_ in chunk]
        return tokens[opening : tokens.index(closing, opening)]

    spoken = "".join(unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0))
    return read_prompt(spoken, [token for chunk in chunks for token in chunk], end, encode)


def _attended(tokens: dict) -> str:
    return "t5xxl" if "t5xxl" in tokens else next(iter(tokens))


def _frame(clip, name: str) -> tuple[int, object]:
    """How many tokens open a prompt, and the token that closes it: where "" and "a" begin to differ."""
    blank, one = (clip.tokenize(text)[name][0] for text in ("", "a"))
    opening = next(index for index, (x, y) in enumerate(zip(blank, one, strict=False)) if x[0] != y[0])
    return opening, _key(blank[opening][0])


def _key(token):
    """A token as something that can be compared: embeddings are vectors."""
    return token if isinstance(token, int) else token.detach().float().cpu().numpy().tobytes()
