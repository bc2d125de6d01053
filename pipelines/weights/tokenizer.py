"""CLIP tokenizers from a local folder."""

from pathlib import Path


def load_tokenizer(folder: str | Path, pad_token: str | None = None):
    """A ``CLIPTokenizer`` from ``folder``; ``pad_token`` None keeps the folder's own, the end token as a rule.

    Raises ``ValueError`` where the folder holds no vocabulary: transformers would make an empty one.
    """
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    folder = Path(folder)
    has_pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not has_pair and not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} is no tokenizer: it needs vocab.json and merges.txt (ComfyUI's comfy/sd1_tokenizer has both)."
        )
    # transformers 5 saves one file, which the slow class of transformers 4 cannot read.
    tokenizer_class = CLIPTokenizer if has_pair else CLIPTokenizerFast
    options = {} if pad_token is None else {"pad_token": pad_token}
    try:
        return tokenizer_class.from_pretrained(str(folder), local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} cannot be read as a CLIP tokenizer ({error}): get its files again.") from error
