"""Everything that a GPU would compute, on a device that refuses what a GPU refuses: the same results as on the CPU."""

import pytest
import torch
from accelerate.state import PartialState
from likeness.pipelines.evaluation.backbones import embedded_clip
from likeness.pipelines.evaluation.scores import Score, Subject, score_pictures
from likeness.pipelines.idetail.controls import draw_points
from likeness.pipelines.idetail.embedded import embedded_relight_pipeline
from likeness.pipelines.masks.face import tilt_of
from likeness.pipelines.portraits import render, sample_person
from likeness.pipelines.spl import StructureSettings, color_loss, preserve_structure, structure_loss
from likeness.pipelines.spl.edit_pipeline import EditSettings
from likeness.pipelines.spl.pipeline import StructureGuidedImg2ImgPipeline
from likeness.pipelines.training import trainer
from pretend_device import pretend_device
from safetensors.torch import load_file
from tiny_base import make_edit_pipeline, make_pipeline
from tiny_training import tiny_settings, tiny_trainer, write_portraits

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
FEW = StructureSettings(iterations=5)


@pytest.fixture
def device():
    with pretend_device() as device:
        yield device


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def picture(seed=2, batch=1, height=64, width=48):
    return torch.rand(batch, 3, height, width, generator=seeded(seed))


def region(height=64, width=48):
    return (torch.rand(1, height, width, generator=seeded(5)) > 0.5).float()


def assert_same_there(function, device, tolerance):
    """``function(device)`` gives a tensor of that device, with the numbers of the CPU."""
    here, there = function(CPU), function(device)
    assert there.device == device and here.std() > 0.01
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=tolerance)


# ---- The device itself


def test_the_device_refuses_what_a_gpu_refuses(device):
    there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=r"same device, but aten.add.Tensor got \(2, 3\) on pretend:0, \(2, 3\) on"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        there[0] = here[0] * there
    with pytest.raises(TypeError, match="Use Tensor.cpu"):
        there.numpy()
    with pytest.raises(TypeError, match="no float64"):
        there.double()
    with pytest.raises(RuntimeError, match="after it is freed"):
        here.to(device, non_blocking=True)
    assert (there + torch.tensor(1.0)).device == (here.to(device) + 1).device == device
    assert torch.equal((there * 2).cpu(), here * 2) and there.sum().item() == 6 and there[here > 0].shape == (6,)
    assert torch.tensor([1.0], device=device).device == torch.randn(3, device=device).device == device


def test_the_device_is_gone_afterwards():
    with pretend_device():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available() and type(torch.Generator()) is torch.Generator


# ---- Pictures


@pytest.mark.parametrize("others", ["beside it", "on the CPU"])
def test_structure_is_preserved(device, others):
    def preserved(where):
        side = where if others == "beside it" else CPU
        return preserve_structure(picture(1, 2).to(where), picture(2).to(side), region().to(side), FEW)

    assert_same_there(preserved, device, 1e-5)


@pytest.mark.parametrize("loss", [structure_loss, color_loss])
def test_losses_and_their_gradients(device, loss):
    def gradient(where):
        edited = picture(1).to(where).requires_grad_()
        loss(edited, picture(2).to(where)).sum().backward()
        return edited.grad * 1e4

    assert_same_there(gradient, device, 1e-3)


def test_portraits_are_rendered_all_at_once(device):
    people = [sample_person(0, index) for index in range(2)]
    here, there = render(people, 32), render(people, 32, device)
    # One by one on the CPU, at once elsewhere: a few rays that just meet an edge may fall to its other side.
    apart = (there.image.cpu() - here.image).abs().amax(1)
    assert (apart > 2 / 255).float().mean() < 0.01
    assert (there.part.cpu() != here.part).float().mean() < 0.01
    torch.testing.assert_close(there.landmarks.cpu(), here.landmarks, rtol=0, atol=0.05)


def test_what_is_measured_in_float64_leaves_the_device_before(device):
    points = torch.tensor([[20.0, 30.0], [40.0, 34.0], [30.0, 40.0], [22.0, 50.0], [38.0, 53.0]])
    assert tilt_of(points.to(device)) == tilt_of(points) != 0
    assert torch.equal(draw_points(points.to(device), (64, 64)), draw_points(points, (64, 64)))
    brightness = Score("brightness", "pixels", True, lambda subject: subject.image.mean((1, 2, 3)))
    here, there = (score_pictures(Subject(picture(batch=2).to(where)), [brightness]) for where in (CPU, device))
    assert torch.equal(there.values["brightness"], here.values["brightness"]) and not there.absent


# ---- Pipelines


@pytest.mark.parametrize(("family", "backbone"), [("sd1", "virtual inversion"), ("sdxl", "ddim inversion")])
def test_edits_from_a_text_to_a_text(device, family, backbone, tmp_path):
    pipeline = make_edit_pipeline(family, tmp_path)

    def edited(where):
        return pipeline.to(where)(
            picture(), "a b c d", "a x b d", settings=EditSettings(backbone, steps=3, source_guidance=2.0),
            structure=FEW, mask=region(), generator=seeded(),
        )  # fmt: skip

    assert_same_there(edited, device, 5e-3)  # random models amplify the last digits


def test_masks_from_words(device, tmp_path):
    pipeline = make_edit_pipeline("sd2", tmp_path)

    def mask(where):
        return pipeline.to(where).word_mask(
            picture(), "a b c", "a x c", ["b"], ["x"], threshold=0.995, settings=EditSettings(steps=2),
            generator=seeded(),
        )  # fmt: skip

    assert_same_there(mask, device, 1e-3)


def test_picture_to_picture_with_structure(device, tmp_path):
    stock = make_pipeline("sd2", tmp_path)

    def edited(where):
        parts = {name: stock.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        pipeline = StructureGuidedImg2ImgPipeline(**parts).to(where)
        return pipeline(picture(), "a b", steps=3, settings=FEW, mask=region(), generator=seeded())

    assert_same_there(edited, device, 1e-3)


def test_relighting(device):
    pipeline = embedded_relight_pipeline()

    def relit(where):
        return pipeline.to(where)(picture(3), "a <c> at golden hour", region(), steps=2, generator=seeded())

    assert_same_there(relit, device, 1e-3)


def test_features_come_back_to_the_cpu(device):
    backbone = embedded_clip()
    here = backbone.embed(picture())
    there = backbone.to(device).embed(picture())
    backbone.to("cpu")
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)


# ---- Training


def test_a_training_with_samples_averages_and_exports(device, tmp_path, monkeypatch):
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    write_portraits(tmp_path / "photos", 3)
    start = trainer.start_accelerator

    def trained(where):
        def start_there(run):
            accelerator = start(run)
            monkeypatch.setitem(PartialState._shared_state, "device", where)
            monkeypatch.setitem(accelerator.state._shared_state, "device", where)
            assert accelerator.device == where
            return accelerator

        monkeypatch.setattr(trainer, "start_accelerator", start_there)
        output = tmp_path / where.type
        running = tiny_trainer(tiny_settings(tmp_path, output, run__steps=2, report__validate_every=2))
        assert running.run() and next(running.network.parameters()).device == where
        [exported] = output.glob("*.safetensors")
        return load_file(exported)

    here, there = trained(CPU), trained(device)
    assert set(here) == set(there)
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=0, atol=1e-4)


# ---- Half precision


def test_the_vae_of_sdxl_that_overflows_in_float16_is_used_in_float32(tmp_path):
    pipeline = make_edit_pipeline("sdxl", tmp_path)
    with torch.no_grad():
        for part in (pipeline.vae.decoder, pipeline.vae.encoder):
            part.conv_in.weight.mul_(40000 / part.conv_in.weight.abs().max())
    exact = pipeline.decode(pipeline.encode(picture()))
    assert exact.isfinite().all()
    pipeline.to(torch.float16)
    with torch.no_grad():
        assert not pipeline.vae.decode(torch.randn(1, 4, 8, 8).half()).sample.isfinite().all()
        half = pipeline.decode(pipeline.encode(picture()))
    assert half.isfinite().all() and (half - exact).abs().mean() < 0.02
    assert pipeline.vae.dtype == torch.float16
