"""Published checkpoints: every accepted form loads to the same tensors, every fault is named."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from likeness.pipelines.weights import published as forms
from likeness.pipelines.weights.published import PUBLISHED, check_names, load_published, split_instantid
from safetensors.torch import save_file


def filled(shapes):
    """A tensor of each shape that takes no room: all its numbers are one."""
    return {name: torch.full((1,), float(i)).expand(shape) for i, (name, shape) in enumerate(sorted(shapes.items()))}


def real(shapes):
    return {name: torch.full(tuple(shape), float(i % 100)) for i, (name, shape) in enumerate(sorted(shapes.items()))}


def test_parameter_counts_are_those_of_the_authors():
    """MCLD's notes: pose guider 1.086 M, projector 80.34 M, face branch 19.17 M; SD1.5's UNet 859.5 M."""

    def count(shapes):
        return sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6

    assert round(count(forms.pose_guider()), 3) == 1.086
    assert round(count(forms.resampler(768)), 2) == 80.34
    assert round(count(forms.mcld_unet()) - count(forms.sd15_unet()), 2) == 19.17
    assert round(count(forms.sd15_unet()), 1) == 859.5
    assert len(forms.mcld_unet()) - len(forms.sd15_unet()) == 32


@pytest.mark.parametrize("kind", ["mcld-pose-guider", "dreampose-adapter"])
@pytest.mark.parametrize("wrapper", ["", "module.", "state_dict.module."])
def test_every_wrapping_loads_to_the_same(tmp_path, kind, wrapper):
    wanted = real(PUBLISHED[kind].shapes())
    path = tmp_path / PUBLISHED[kind].files[0]
    torch.save({wrapper + name: tensor for name, tensor in wanted.items()}, path)
    for place in (path, tmp_path):
        found = load_published(place, kind)
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_text_encoders_of_all_ages_load_to_the_same(tmp_path, monkeypatch):
    shapes = forms.sd15_text_encoder()
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 123_060_480  # as SD1.5's is known to have
    few = {name: shape for name, shape in shapes.items() if "layers.3.self_attn" in name or "position" in name}
    monkeypatch.setitem(PUBLISHED, "sd15-text-encoder", replace(PUBLISHED["sd15-text-encoder"], shapes=lambda: few))
    wanted = real(few)
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for published in (wanted, wanted | ids, {name.removeprefix("text_model."): x for name, x in wanted.items()}):
        torch.save(published, tmp_path / "pytorch_model.bin")
        found = load_published(tmp_path, "sd15-text-encoder")
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
        (tmp_path / "pytorch_model.bin.safetensors").unlink()


def test_what_differs_is_named(tmp_path):
    tensors = real(forms.pose_guider())
    tensors["blocks.2.weight"] = torch.zeros(32, 32, 1, 1)
    tensors["surprise"] = tensors.pop("conv_out.bias")
    save_file(tensors, tmp_path / "guider.safetensors")
    with pytest.raises(ValueError) as caught:
        load_published(tmp_path / "guider.safetensors", "mcld-pose-guider")
    assert re.search(
        r"1 missing: conv_out.bias; 1 not known: surprise; 1 of another shape: blocks.2.weight .32, 32, 1, 1., "
        r"wanted .32, 32, 3, 3.",
        str(caught.value),
    )
    with pytest.raises(ValueError, match="holds none of pose_guider.pth"):
        load_published(tmp_path, "mcld-pose-guider")
    with pytest.raises(ValueError, match="no published checkpoint is called 'magic': known are sd15-unet"):
        load_published(tmp_path, "magic")
    with pytest.raises(ValueError, match="16 missing: blocks.0.bias, .*, [.]{3}"):
        check_names({}, forms.pose_guider(), "x")


def test_both_names_of_a_unet_are_the_same_unet():
    """On all 686 tensors, against a table written out by hand."""
    shapes = forms.sd15_unet()
    ldm = {ours: theirs for theirs, ours in slow_ldm_names(shapes).items()}
    assert len(ldm) == len(shapes) == 686
    tensors = filled(shapes)
    for prefix in ("", "diffusion_model.", "model.diffusion_model."):
        found = forms.diffusers_unet({prefix + ldm[name]: tensor for name, tensor in tensors.items()})
        check_names(found, shapes, "converted")
        assert all(found[name].reshape(-1)[0] == tensors[name].reshape(-1)[0] for name in shapes)
    assert forms.diffusers_unet(tensors) is tensors
    ldm_tensors = {ldm[name]: tensor for name, tensor in tensors.items()} | {"foo.bar.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="1 names belong to no UNet .*: foo.bar.weight"):
        forms.diffusers_unet(ldm_tensors)


def slow_ldm_names(shapes):
    """diffusers name to LDM name of SD1.5's UNet, written out block by block from the two papers' code layouts."""
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    ends = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
            "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}  # fmt: skip

    def place(name):
        for ours, theirs in ends.items():
            if name.startswith(ours + "."):
                return theirs + name.removeprefix(ours)
        if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            kind, number, rest = found.groups()
            inside = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}."
        elif found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
            return f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
        elif found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
            return f"output_blocks.{3 * int(found[1]) + 2}.{1 if found[1] == '0' else 2}.conv.{found[2]}"
        else:
            side, level, kind, number, rest = re.match(
                r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name
            ).groups()
            block = 3 * int(level) + int(number) + (1 if side == "down" else 0)
            inside = f"{'input' if side == 'down' else 'output'}_blocks.{block}.{int(kind == 'attentions')}."
        if "transformer_blocks" in rest or rest.startswith(("norm.", "proj_")):
            return inside + rest
        part, _, last = rest.rpartition(".")
        return f"{inside}{resnet[part]}.{last}"

    return {place(name): name for name in shapes}


def test_instantid_is_split_and_its_numbers_become_names(tmp_path):
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, cross_attention_dim=12,
        attention_head_dim=4, transformer_layers_per_block=2,
    )  # fmt: skip
    layers = [name for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))]
    numbers = [number for number, name in enumerate(layers) if name.endswith("attn2")]
    weights = {f"{n}.to_{p}_ip.weight": torch.full((16, 12), float(n)) for n in numbers for p in "kv"}
    projector = real(forms.resampler(12, layers=2, width=32))
    torch.save({"image_proj": projector, "ip_adapter": weights}, tmp_path / "ip-adapter.bin")
    image_proj, attention = split_instantid(tmp_path / "ip-adapter.bin", unet)
    assert set(image_proj) == set(projector)
    assert len(attention) == 2 * len(numbers)
    order = list(unet.attn_processors)
    for name, tensor in attention.items():
        assert tensor[0, 0] == order.index(name.rpartition(".to_")[0])
    weights.pop(f"{numbers[0]}.to_k_ip.weight")
    torch.save({"image_proj": projector, "ip_adapter": weights}, tmp_path / "ip-adapter.bin")
    with pytest.raises(ValueError, match=f"1 missing: {numbers[0]}.to_k_ip.weight"):
        split_instantid(tmp_path / "ip-adapter.bin", unet)
    torch.save({"lora": weights}, tmp_path / "ip-adapter.bin")
    with pytest.raises(ValueError, match="is no InstantID adapter: it holds lora"):
        split_instantid(tmp_path / "ip-adapter.bin", unet)
