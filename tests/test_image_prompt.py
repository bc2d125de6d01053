"""Image prompts: projector and decoupled attention against plain loops, and InstantID's file as it is published."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from likeness.pipelines.image_prompt import (
    ImageAttention,
    ImagePromptAdapter,
    Resampler,
    image_prompt,
    load_image_prompt_adapter,
)
from likeness.pipelines.image_prompt.attention import DecoupledAttention, cross_attention_layers
from likeness.pipelines.weights import published
from likeness.pipelines.weights.manifest import named
from tiny_adapter import write_adapter
from tiny_base import unet as tiny_unet

CONTEXT = 24


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return tiny_unet(CONTEXT).eval()


def called(unet, rows=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    latent, text = torch.randn(rows, 4, 8, 8, generator=draw), torch.randn(rows, 5, CONTEXT, generator=draw)
    with torch.no_grad():
        return unet(latent, 300, encoder_hidden_states=text).sample


@torch.no_grad()
def heads_by_loops(q, k, v, heads):
    """softmax(q k / sqrt d) v, one query of one head at a time, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    out, size = torch.zeros_like(q), q.shape[-1] // heads
    for row in range(len(q)):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for place in range(q.shape[1]):
                scores = [float(q[row, place, part] @ key[part]) / math.sqrt(size) for key in k[row]]
                weights = torch.tensor([math.exp(score - max(scores)) for score in scores]).double()
                out[row, place, part] = (weights / weights.sum()) @ v[row, :, part]
    return out


def linear(layer, x):
    out = x.double() @ layer.weight.double().T
    return out if layer.bias is None else out + layer.bias.double()


def normed(layer, x):
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def test_the_image_tokens_attention_is_added_to_the_texts(unet):
    attn = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    draw = torch.Generator().manual_seed(1)
    hidden, text = torch.randn(2, 6, 64, generator=draw), torch.randn(2, 5, CONTEXT, generator=draw)
    keys, values = torch.randn(2, 3, 64, generator=draw), torch.randn(2, 3, 64, generator=draw)
    with torch.no_grad():
        made = DecoupledAttention(keys, values, 0.7)(attn, hidden, text)
    q = linear(attn.to_q, hidden)
    of_text = heads_by_loops(q, linear(attn.to_k, text), linear(attn.to_v, text), attn.heads)
    expected = linear(attn.to_out[0], of_text + 0.7 * heads_by_loops(q, keys, values, attn.heads))
    assert torch.allclose(made.double(), expected, atol=1e-5)


def test_the_projector_is_the_perceiver_of_the_published_files():
    torch.manual_seed(0)
    made = Resampler(CONTEXT, layers=2, width=128, tokens=3, inputs=10).eval()
    for parameter in made.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    embedding = torch.randn(2, 10)
    x, latents = linear(made.proj_in, embedding[:, None]), made.latents.double().expand(2, -1, -1)
    for attention, feed in made.layers:
        seen, own = normed(attention.norm1, x), normed(attention.norm2, latents)
        k, v = linear(attention.to_kv, torch.cat([seen, own], 1)).chunk(2, -1)
        latents = latents + linear(attention.to_out, heads_by_loops(linear(attention.to_q, own), k, v, heads=2))
        hidden = linear(feed[1], normed(feed[0], latents))
        latents = latents + linear(feed[3], hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    expected = normed(made.norm_out, linear(made.proj_out, latents))
    with torch.no_grad():
        assert torch.allclose(made(embedding).double(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="has 9 numbers, the projector reads 10"):
        made(embedding[:, :9])


def test_scale_0_is_the_plain_unet_bit_for_bit_and_afterwards_it_is_itself_again(unet):
    plain, before = called(unet), unet.attn_processors
    torch.manual_seed(2)
    attention = ImageAttention(unet)
    tokens = torch.randn(2, 4, CONTEXT)
    with torch.no_grad(), image_prompt(unet, attention, tokens, 0.0):
        assert sum(isinstance(p, DecoupledAttention) for p in unet.attn_processors.values()) == len(attention.layers)
        assert torch.equal(called(unet), plain)
    with torch.no_grad(), image_prompt(unet, attention, tokens, 0.8):
        assert (called(unet) - plain).abs().max() > 1e-4
        with pytest.raises(ValueError, match="of the kind DecoupledAttention"):
            image_prompt(unet, attention, tokens, 1).__enter__()
        with pytest.raises(ValueError, match="2 image prompts for 3 rows"):
            called(unet, rows=3)
    assert unet.attn_processors == before
    assert torch.equal(called(unet), plain)


def test_each_row_reads_its_own_image_prompt(unet):
    torch.manual_seed(3)
    attention, tokens = ImageAttention(unet), torch.randn(2, 4, CONTEXT)
    with torch.no_grad(), image_prompt(unet, attention, tokens, 1.0):
        both = called(unet)
    with torch.no_grad(), image_prompt(unet, attention, tokens[:1].expand(2, -1, -1), 1.0):
        first = called(unet)
    assert torch.allclose(both[0], first[0], atol=1e-5)
    assert (both[1] - first[1]).abs().max() > 1e-3


def test_a_published_file_is_loaded_whole(unet, tmp_path):
    """Its numbers count all attention processors; the unconditional tokens are what the projector makes of zeros."""
    projector, keys = write_adapter(tmp_path / "ip-adapter.bin", unet, inputs=12)
    adapter = load_image_prompt_adapter(tmp_path / "ip-adapter.bin", unet)
    assert all(torch.equal(tensor, projector[name]) for name, tensor in adapter.projector.state_dict().items())
    order = list(unet.attn_processors)
    for layer, mine in zip(adapter.attention.layers, adapter.attention.keys, strict=True):
        assert torch.equal(mine.weight, keys[f"{order.index(layer)}.to_k_ip.weight"])
    embedding = torch.randn(1, 12)
    tokens = adapter.tokens(embedding)
    assert torch.allclose(tokens[1:], adapter.projector(embedding), atol=1e-5)
    assert torch.allclose(tokens[:1], adapter.projector(torch.zeros(1, 12)), atol=1e-5)
    assert tokens[0].abs().mean() > 0.1
    assert adapter.tokens(embedding, guided=False).shape == (1, *tokens.shape[1:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda proj, ip: proj.pop("norm_out.bias"), "1 missing: norm_out.bias"),
     (lambda proj, ip: proj.update(latents=torch.zeros(1, 3, 16)), "of another shape: layers.0.0.norm1.bias"),
     (lambda proj, ip: ip.update({"0.to_k_ip.weight": torch.zeros(2, 2)}), "1 not known: 0.to_k_ip.weight"),
     (lambda proj, ip: ip["1.to_v_ip.weight"].resize_(3, CONTEXT), r"1.to_v_ip.weight \(3, 24\), wanted \(64, 24\)"),
     (lambda proj, ip: ip["1.to_v_ip.weight"].fill_(math.nan), "NaN or infinite")],
    ids=["missing", "other size", "unknown", "other layer", "nan"],
)  # fmt: skip
def test_a_file_that_is_not_as_published_is_refused(unet, tmp_path, spoil, message):
    write_adapter(tmp_path / "ip-adapter.bin", unet, inputs=12, change=spoil)
    with pytest.raises(ValueError, match=message):
        load_image_prompt_adapter(tmp_path / "ip-adapter.bin", unet)


def test_at_full_size_names_shapes_and_bytes_are_those_of_instantids_file():
    """SDXL's UNet and the adapter without memory; the file is as long as its numbers, and some kilobytes of names."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), sample_size=128,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        adapter = ImagePromptAdapter(Resampler(2048), ImageAttention(unet))
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.projector.state_dict().items()}
    assert shapes == published.resampler(2048)
    names = published.ip_adapter_names(unet.attn_processors)
    assert len(names) == 2 * len(adapter.attention.layers) == 140
    assert sorted(int(name.partition(".")[0]) for name in names)[::2] == list(range(1, 140, 2))
    assert set(cross_attention_layers(unet).values()) == {(640, 2048), (1280, 2048)}
    numbers = sum(parameter.numel() for parameter in adapter.parameters())
    assert 0 < named("instantid/adapter").size - 4 * numbers < 100_000
