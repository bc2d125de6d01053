"""Our nodes where ComfyUI computes on a device that is not the CPU: no tensors of two devices, the CPU's results."""

from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from likeness.nodes import convert, detail_restore, masks, person_masks, portrait_scores, scores, spl
from likeness.nodes import faces as face_nodes
from likeness.nodes.idetail import EMBEDDED, RelightConditioning, RelightLoraLoader
from likeness.nodes.models import LoadEmbeddedPortraitModel
from likeness.nodes.text_edit import DdimInversionSampler, EditGuiderNode, EditMaskFromWords, VirtualInversionSampler
from likeness.pipelines.masks import RcnnSettings, rcnn_masks
from likeness.pipelines.portraits import render, sample_person
from pretend_device import pretend_device
from test_structure_guidance import photo
from tiny_models import CONTEXT, StandInClip, block_vae, conditioning, tiny_flux, tiny_unet

CPU = torch.device("cpu")
TEXTS = ("a disc on grass", "a small stripe on grass")


@pytest.fixture
def device(monkeypatch):
    """What ComfyUI takes for its GPU."""
    management = comfy.model_management
    with pretend_device(apple=False) as device:  # ComfyUI's own networks go by the kind of device
        monkeypatch.setattr(management, "get_torch_device", lambda: device)
        monkeypatch.setattr(management, "get_free_memory", lambda dev=None, torch_free_too=False:
                            (8e9, 8e9) if torch_free_too else 8e9)  # fmt: skip
        monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        for module in (convert, detail_restore, person_masks, spl):
            monkeypatch.setattr(module, "compute_device", lambda own=None: own or device)
        yield device


@pytest.fixture(params=["pictures on the CPU", "pictures on the GPU"])
def kept(request, device, monkeypatch):
    """The device on which ComfyUI keeps pictures between nodes: the other one with --gpu-only."""
    place = device if request.param.endswith("GPU") else CPU
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: place)
    return place


def moved(patcher, device):
    """A tiny MODEL, or the patcher of a VAE, that is loaded to ``device`` to be run."""
    patcher.load_device = device
    return patcher


def vae_on(device, channels=4):
    vae = block_vae(channels)
    vae.device = device
    moved(vae.patcher, device)
    return vae


def seeded_noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def assert_alike(function, device, tolerance=1e-3):
    """``function(where)`` gives on the device what it gives on the CPU."""
    here, there = function(CPU).cpu(), function(device).cpu()
    assert here.std() > 0.01
    torch.testing.assert_close(there, here, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("build", "channels", "pooled"), [(tiny_unet, 4, ()), (tiny_flux, 16, (32,))])
def test_structure_guidance(device, build, channels, pooled):
    def sampled(where):
        model, vae = moved(build(), where), vae_on(where, channels)
        guided = spl.StructureGuidanceNode.execute(model, vae, photo(64, 64), 0.4, 10000.0, True, 5).result[0]
        conds, noise = (conditioning(1, *pooled), conditioning(2, *pooled)), seeded_noise(1, channels, 8, 8)
        return comfy.sample.sample(
            guided, noise, 3, 2.0, "euler", "normal", *conds, torch.zeros_like(noise), seed=1, disable_pbar=True
        )

    assert_alike(sampled, device)


@pytest.mark.parametrize("sampler", [VirtualInversionSampler, DdimInversionSampler])
def test_edits_from_a_text_to_a_text(device, sampler):
    def edited(where):
        model, clip = moved(tiny_unet(), where), StandInClip(CONTEXT)
        guided = spl.StructureGuidanceNode.execute(model, vae_on(where), photo(64, 64), 0.4, 10000.0, True, 5).result[0]
        guider = EditGuiderNode.execute(guided, clip, *TEXTS, "", 1.5, 2.0, 0.8, 0.8, "unified").result[0]
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 3)
        made = sampler.execute(*([1] if sampler is DdimInversionSampler else [0.0])).result[0]
        latent = 4 * seeded_noise(1, 4, 8, 8)
        return guider.sample(seeded_noise(1, 4, 8, 8), latent, made, sigmas, disable_pbar=True, seed=1)

    assert_alike(edited, device)


def test_masks_from_words(device, kept):
    def mask(where):
        return EditMaskFromWords.execute(
            moved(tiny_unet(), where), StandInClip(CONTEXT), vae_on(where), photo(64, 64).to(kept), TEXTS[0], "disc",
            0.8, False, soft=True, steps=1,  # noise after the first step is drawn on the device
        ).result[0]  # fmt: skip

    assert_alike(mask, device)


def test_relighting_with_the_shipped_models(device, kept, monkeypatch):
    def relit(where):
        monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: where)
        model, clip, vae, _ = LoadEmbeddedPortraitModel.execute().result
        relighting = RelightLoraLoader.execute(model, EMBEDDED, 1.0).result[0]
        told = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a <c> at golden hour", "")]
        region = (photo(64, 64)[..., 0] > 0.5).float().to(kept)
        positive, negative, latent = RelightConditioning.execute(
            relighting, *told, vae, photo(64, 64).to(kept), region
        ).result
        noise = seeded_noise(1, 4, 8, 8)
        found = comfy.sample.sample(
            relighting, noise, 2, 2.0, "euler", "normal", positive, negative, latent["samples"], seed=1,
            disable_pbar=True,
        )  # fmt: skip
        return vae.decode(found)

    assert_alike(relit, device)


@pytest.mark.parametrize("node", ["refine", "detail", "scores", "upsample", "soften", "clean", "band"])
def test_pictures_and_masks_of_two_devices(device, kept, node):
    def made(where):
        image, source = photo(48, 64).to(where), photo(48, 64).flip(2)
        region = (source[..., 0] > 0.5).float()
        nodes = {
            "refine": lambda: spl.StructureRefine.execute(image, source, 10000.0, True, 5, region),
            "detail": lambda: detail_restore.DetailRestore.execute(image, source, "wavelet", 1.0, 4, region),
            "scores": lambda: scores.StructureScore.execute(image, source),
            "upsample": lambda: masks.UpsampleMaskToEdges.execute(region[:, ::8, ::8], image, False),
            "soften": lambda: masks.SoftenMask.execute(region, image, 4),
            "clean": lambda: masks.CleanMask.execute(region.to(where), 5.0, 0.1, 1),
            "band": lambda: masks.MaskEdgeBand.execute(region.to(where), 2, 2),
        }
        return [part for part in nodes[node]().result if isinstance(part, torch.Tensor)][-1]

    assert_alike(made, device)


@pytest.mark.parametrize("node", ["crop", "paste", "drawn", "boxes", "people", "clothes", "face", "scores", "best"])
def test_portraits_that_are_kept_on_the_device(device, monkeypatch, node):
    monkeypatch.setattr(person_masks, "rcnn_file", lambda: None)
    portrait = render(sample_person(3, 1), 128).image.movedim(1, -1)

    def made(where):
        monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: where)
        image, worse = portrait.to(where), (0.9 * portrait).to(where)
        faces, drawn, *_, boxes = face_nodes.DetectFaces.execute(
            image, "embedded", "antelopev2", 0.3, "largest first", True, "cpu"
        ).result
        crops, inside, cropped = face_nodes.FaceCrop.execute(image, faces, 64, "aligned", 0.2, "all", 0).result
        known = {"source": image, "mask": boxes, "faces": faces}
        nodes = {
            "crop": lambda: crops * inside[..., None],
            "paste": lambda: face_nodes.PasteFaceBack.execute(worse, crops, cropped, 4).result[0],
            "drawn": lambda: drawn,
            "boxes": lambda: boxes,
            "people": lambda: person_masks.ForegroundMask.execute(image, "auto", 0, 3, faces).result[0],
            "clothes": lambda: person_masks.ClothingMask.execute(image, "auto", 0, 3, faces).result[0],
            "face": lambda: person_masks.FaceMask.execute(image, 0, 3, True, faces).result[0],
            "scores": lambda: torch.tensor(portrait_scores.PortraitScores.execute(worse, **known).result[:3]),
            "best": lambda: portrait_scores.KeepBest.execute(
                [worse, image], [1], ["structure (SSIM)"], [True], **{name: [value] for name, value in known.items()}
            ).result[1],
        }  # fmt: skip
        return nodes[node]()

    assert_alike(made, device)


class OnePerson(torch.nn.Module):
    """In the place of Mask R-CNN: in every picture the person is where it is bright."""

    def __init__(self):
        super().__init__()
        self.weight, self.roi_heads = torch.nn.Parameter(torch.ones(1)), SimpleNamespace(score_thresh=0.05)

    def forward(self, pictures):
        [picture] = pictures
        bright = (picture.mean(0, keepdim=True) * self.weight > 0.5).float()
        return [{"labels": torch.ones(1, dtype=torch.int64).to(bright.device), "masks": bright[None],
                 "scores": torch.full((1,), 0.9).to(bright.device)}]  # fmt: skip


@pytest.mark.parametrize("memory", ["NORMAL_VRAM", "NO_VRAM"])
def test_mask_rcnn_sees_one_picture_at_a_time_and_is_loaded_whole(device, monkeypatch, memory):
    management, asked, network = comfy.model_management, [], OnePerson()
    load = management.load_models_gpu
    monkeypatch.setattr(management, "vram_state", management.VRAMState[memory])
    monkeypatch.setattr(management, "load_models_gpu", lambda *args, **told: asked.append(told) or load(*args, **told))
    monkeypatch.setattr(person_masks, "load_mask_rcnn", lambda path: network)
    pictures = torch.rand(3, 3, 40, 50)
    find = person_masks.managed_rcnn(Path("weights"), 0.7, (40, 50))
    found = rcnn_masks(find, pictures, settings=RcnnSettings(softness=0))
    assert torch.equal(found, (pictures.mean(1, keepdim=True) > 0.5).float()) and network.weight.device == device
    assert 0.69 < network.roi_heads.score_thresh < 0.7 and asked[0]["memory_required"] >= 2 * 4 * 40 * 50
