"""A byte-level BPE vocabulary in CLIP's format, small because the portrait world has few words."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..files import write_text

START, END = "<|startoftext|>", "<|endoftext|>"
# What CLIP takes for a word: an English ending, letters, one digit, or other signs together.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_vocabulary(texts: Iterable[str], size: int) -> tuple[dict[str, int], list[str]]:
    """(vocabulary, merges) of at most ``size`` tokens; the bytes alone are 512, so any text can be written with it.

    The last two tokens are start and end. The same texts give the same vocabulary, in any order.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # As in CLIP's file: letters, letters that end a word, what merging makes of them, the special tokens.
    tokens = [*letters, *[letter + "</w>" for letter in letters]]
    # The trainer's own letters are among these, so it makes at least as many merges as fit.
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(sorted(texts), trainer)
    merges = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if len(tokens) < size - 2 and left + right not in tokens:
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    return {token: number for number, token in enumerate([*tokens, START, END])}, merges


def save_vocabulary(folder: Path, vocabulary: dict[str, int], merges: list[str], tokens: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, which every version of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens, "bos_token": START, "eos_token": END,
              "unk_token": END, "pad_token": END}  # fmt: skip
    for name, text in (
        ("vocab.json", json.dumps(vocabulary, ensure_ascii=False, indent=0)),
        ("merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n"),
        ("tokenizer_config.json", json.dumps(config, indent=2)),
    ):
        write_text(folder / name, text)


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[str]]:
    """(vocabulary, merges) that ``save_vocabulary`` wrote. Raises ``ValueError`` where they are not there."""
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        first, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no vocabulary ({error}): give a folder of embedded models.") from error
    return vocabulary, merges if first.startswith("#version") else [first, *merges]
