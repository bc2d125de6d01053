"""Published checkpoints: every accepted form loads to the same tensors, every fault is named."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from likeness.pipelines.weights import face_networks
from likeness.pipelines.weights import published as forms
from likeness.pipelines.weights.published import PUBLISHED, check_names, load_published, split_instantid
from safetensors.torch import save_file
from torch import nn


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


# --- networks that see faces


def ir_block(inputs, width, squeeze):
    """A block of AdaFace's recogniser, by its description."""
    inside = nn.Sequential(
        nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width),
        nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width),
    )  # fmt: skip
    if squeeze:
        narrow, wide = (nn.Conv2d(*widths, 1, bias=False) for widths in ((width, width // 16), (width // 16, width)))
        inside.add_module("se_block", nn.ModuleDict({"fc1": narrow, "fc2": wide}))
    same = nn.Sequential(nn.Conv2d(inputs, width, 1, 2, bias=False), nn.BatchNorm2d(width))
    return nn.ModuleDict({"res_layer": inside, "shortcut_layer": nn.MaxPool2d(1) if inputs == width else same})


def ir_module(blocks, squeeze):
    widths = [64, *[width for width, number in zip((64, 128, 256, 512), blocks, strict=True) for _ in range(number)]]
    return nn.ModuleDict({
        "input_layer": nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)),
        "body": nn.Sequential(*[ir_block(*pair, squeeze) for pair in zip(widths, widths[1:], strict=False)]),
        "output_layer": nn.Sequential(nn.BatchNorm2d(512), nn.Dropout(), nn.Flatten(), nn.Linear(512 * 49, 512),
                                      nn.BatchNorm1d(512, affine=False)),
    })  # fmt: skip


def classifier_module(people):
    def projection():
        return nn.Sequential(nn.Linear(512, 256), nn.ReLU())

    return nn.ModuleDict({
        "backbone": ir_module((3, 4, 14, 3), True), "attr_projection": projection(), "id_projection": projection(),
        "id_head": nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, people)),
    })  # fmt: skip


def retinaface_module():
    """Its parts by their description, on torchvision's ResNet-50."""
    resnet = pytest.importorskip("torchvision.models", reason="NOT COMPARED: pip install torchvision").resnet50()
    body = nn.ModuleDict({name: part for name, part in resnet.named_children() if name not in ("avgpool", "fc")})

    def layer(inputs, outputs, side=3):
        return nn.Sequential(nn.Conv2d(inputs, outputs, side, bias=False), nn.BatchNorm2d(outputs))

    def context():
        inner = {name: layer(64, 64) for name in ("conv5X5_2", "conv7X7_2", "conv7x7_3")}
        return nn.ModuleDict({"conv3X3": layer(256, 128), "conv5X5_1": layer(256, 64), **inner})

    def heads(outputs):
        return nn.ModuleList([nn.ModuleDict({"conv1x1": nn.Conv2d(256, outputs, 1)}) for _ in range(3)])

    pyramid = {f"output{level}": layer(width, 256, 1) for level, width in ((1, 512), (2, 1024), (3, 2048))}
    return nn.ModuleDict({
        "body": body, "fpn": nn.ModuleDict({**pyramid, "merge1": layer(256, 256), "merge2": layer(256, 256)}),
        **{f"ssh{level}": context() for level in (1, 2, 3)},
        "ClassHead": heads(4), "BboxHead": heads(8), "LandmarkHead": heads(20),
    })  # fmt: skip


def mapper_module():
    """ELITE's mapper, and the layers it adds for each cross-attention of the UNet, as its code names them."""

    def to_word():
        hidden = [layer for _ in range(2) for layer in (nn.Linear(1024, 1024), nn.LayerNorm(1024), nn.LeakyReLU())]
        return nn.Sequential(*hidden, nn.Linear(1024, 768))

    module = nn.ModuleDict({f"mapping_{kind}{word}": to_word() for kind in ("", "patch_") for word in range(5)})
    for name, part in UNet2DConditionModel(cross_attention_dim=768).named_modules():
        if name.endswith("attn2"):
            for own in ("to_k", "to_v"):
                layer = nn.Linear(*getattr(part, own).weight.shape[::-1], bias=False)
                module.add_module(f"{name.replace('.', '_')}_{own}", layer)
    return module


FACE_NETWORKS = {
    "adaface-ir50": lambda: ir_module((3, 4, 14, 3), False), "adaface-ir101": lambda: ir_module((3, 13, 30, 3), False),
    "idsync-classifier": lambda: classifier_module(20), "retinaface": retinaface_module, "elite-mapper": mapper_module,
}  # fmt: skip


@pytest.mark.parametrize("kind", FACE_NETWORKS)
def test_networks_for_faces_are_built_as_their_authors_build_them(kind):
    with torch.device("meta"):
        state = FACE_NETWORKS[kind]().state_dict()
    found = PUBLISHED[kind].rename(forms.unwrapped({f"module.{name}": tensor for name, tensor in state.items()}))
    check_names(found, PUBLISHED[kind].shapes(), kind)
    lost = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(found) == len(state) - len(lost) and (lost or kind == "elite-mapper")
    if kind == "idsync-classifier":
        assert len(state) == 523 and len(lost) == 78


def test_sizes_are_those_that_are_told():
    """IDSync's backbone 43.81 M weights; the file of RetinaFace 109,497,761 bytes; SD2.1 as its own card counts."""

    def count(shapes):
        return sum(torch.Size(shape).numel() for name, shape in shapes.items() if "running" not in name)

    assert round(count(face_networks.ir_network(50, squeeze=True)) / 1e6, 2) == 43.81
    running = {name: shape for name, shape in face_networks.retinaface().items() if "running" in name}
    numbers = count(face_networks.retinaface()) + sum(shape[0] for shape in running.values())
    assert 0 < 109_497_761 - 4 * numbers < 0.003 * 109_497_761  # the rest are names
    assert count(forms.sd21_unet()) == 865_910_724
    assert count(forms.sd21_text_encoder()) == 340_387_840
    assert len(PUBLISHED["elite-mapper"].shapes()) == 10 * 10 + 2 * 16


def test_checkpoints_of_face_networks_load_into_their_modules(tmp_path, monkeypatch):
    """The classifier with its few large tensors made small, wrapped as IDSync's training saves it, on 7 people."""
    module = classifier_module(7).eval()
    state = {name: tensor for name, tensor in module.state_dict().items() if tensor.numel() < 1e5}
    few = {name: shape for name, shape in face_networks.idsync_classifier().items() if name in state}
    kind = replace(PUBLISHED["idsync-classifier"], shapes=lambda: few)
    monkeypatch.setitem(PUBLISHED, "idsync-classifier", kind)
    torch.save({"best_accuracy": 0.94, "model_state_dict": state}, tmp_path / "run_checkpoint_0.9400.pth")
    found = load_published(tmp_path / "run_checkpoint_0.9400.pth", "idsync-classifier")
    assert found["id_head.3.weight"].shape == (7, 512)
    lacking = module.load_state_dict(found, strict=False)
    assert not lacking.unexpected_keys and not any("num_batches" in name for name in lacking.missing_keys)
    torch.save({"model_state_dict": state | {"attribute_head.weight": torch.zeros(3, 256)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="1 not known: attribute_head.weight"):
        load_published(tmp_path / "other.pth", "idsync-classifier")


def test_recognisers_load_from_the_form_of_the_hub(tmp_path, monkeypatch):
    tensors = real({name: shape for name, shape in face_networks.ir_network(50).items() if name.startswith("body.3.")})
    kind = replace(PUBLISHED["adaface-ir50"], shapes=lambda: {name: value.shape for name, value in tensors.items()})
    monkeypatch.setitem(PUBLISHED, "adaface-ir50", kind)
    saved = tensors | {"body.3.res_layer.0.num_batches_tracked": torch.tensor(5)}
    save_file({f"model.net.{name}": tensor for name, tensor in saved.items()}, tmp_path / "model.safetensors")
    found = load_published(tmp_path, "adaface-ir50")
    assert set(found) == set(tensors) and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_elites_keys_and_values_get_the_names_of_the_unet():
    at = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    given = {f"{at.replace('.', '_')}_to_k.weight": torch.zeros(640, 768), "mapping_0.0.bias": torch.zeros(1024)}
    found = PUBLISHED["elite-mapper"].rename(given)
    assert set(found) == {"mapping_0.0.bias", f"{at}.to_k.weight"}
