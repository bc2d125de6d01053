"""Learnt words: against diffusers' own textual inversion, and what is refused."""

import pytest
import torch
from likeness.pipelines.weights import load_base_model
from likeness.pipelines.weights.prompts import encode_prompts
from likeness.pipelines.weights.word_vectors import (
    KEYS,
    apart,
    read_word,
    save_word,
    spelled_vectors,
    word_read_as,
)
from safetensors.torch import load_file, save_file
from tiny_base import make_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
WORD, PROMPTS = "<c>", [apart("<c>", text) for text in ("a <c> at dawn", "two:<c>and a <c>, smiling", "nobody")]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_pipeline(request.param, folder).save_pretrained(folder / "model")
    return folder / "model", load_base_model(folder / "model", parts=("text",))


def moved(base) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    first = spelled_vectors(base.text_encoders, base.tokenizers, WORD)
    return [given + 0.3 * torch.randn(given.shape, generator=draw) for given in first]


def encoded(base, vectors, prompts=PROMPTS):
    with word_read_as(WORD, vectors, base.text_encoders, base.tokenizers):
        return encode_prompts(base.text_encoders, base.tokenizers, prompts)


def test_a_prompt_reads_as_with_the_textual_inversion_of_diffusers(model, tmp_path):
    """The file is loaded by diffusers' own loader, as a new word of as many tokens."""
    import diffusers

    folder, base = model
    vectors = moved(base)
    save_word(tmp_path / "word.safetensors", base.family, vectors, {})
    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    parts = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")][: len(vectors)]
    written = load_file(tmp_path / "word.safetensors")
    for (tokenizer, encoder), key in zip(parts, KEYS[base.family], strict=True):
        stock.load_textual_inversion(
            written[key], token="someone", tokenizer=getattr(stock, tokenizer), text_encoder=getattr(stock, encoder)
        )
    texts = [prompt.replace(WORD, "someone") for prompt in PROMPTS]
    tokenizers = [getattr(stock, tokenizer) for tokenizer, _ in parts]
    expanded = [stock.maybe_convert_prompt(text, tokenizers[0]) for text in texts]
    wanted = encode_prompts([getattr(stock, encoder) for _, encoder in parts], tokenizers, expanded)
    found = encoded(base, read_word(tmp_path / "word.safetensors", base.family))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    plain = base.encode_prompts(PROMPTS)["prompt"]
    assert torch.equal(found["prompt"][2], plain[2]) and (found["prompt"][0] - plain[0]).abs().max() > 1e-3


def test_its_own_spelling_changes_nothing_and_nothing_stays_behind(model):
    _, base = model
    plain = base.encode_prompts(PROMPTS)
    same = encoded(base, spelled_vectors(base.text_encoders, base.tokenizers, WORD))
    encoded(base, moved(base))
    after = base.encode_prompts(PROMPTS)
    assert all(torch.equal(plain[name], same[name]) and torch.equal(plain[name], after[name]) for name in plain)


def test_wrong_vectors_and_wrong_files_are_refused(model, tmp_path):
    _, base = model
    vectors = moved(base)
    with pytest.raises(ValueError, match=r"vectors of '<c>' are \(2, 32\), this model's text encoder spells it with"):
        encoded(base, [vectors[0][:2], *vectors[1:]])
    save_file({"emb_params": vectors[0]}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"no vectors for the text encoders of {base.family}"):
        read_word(tmp_path / "other.safetensors", base.family)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no vectors"):
        read_word(tmp_path / "broken.safetensors", base.family)
    with pytest.raises(ValueError, match="clip_. is not finite"):
        nothing = [torch.full((3, 4), torch.nan) for _ in KEYS[base.family]]
        save_word(tmp_path / "nan.safetensors", base.family, nothing, {})
    assert not (tmp_path / "nan.safetensors").exists()
