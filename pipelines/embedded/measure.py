"""How good the embedded models are, measured on people that none of them was trained with."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..faces.portrait_world import find_portrait_faces
from ..metrics.frechet import frechet_distance
from ..metrics.verification import pair_similarities, verification_accuracy
from ..training.sampling import decode, stock_pipeline
from .autoencoder import reconstruct
from .clip import CHOICES, tokenize
from .face_detector import detection_scores
from .face_embedder import embeddings_of
from .family import EmbeddedFamily
from .judge import ASPECTS, Judge, verdicts
from .portrait_set import PortraitSet, batches

Progress = Callable[[str, int, int], None]


def measure_family(
    family: EmbeddedFamily, judge: Judge, held_out: PortraitSet, generated: int, guidance_scale: float, steps: int,
    progress: Progress,
) -> dict[str, float]:  # fmt: skip
    """All figures by name; ``generated``: how many pictures the text-to-image model makes for its own."""
    figures = {
        "autoencoder PSNR (dB)": autoencoder_psnr(family, held_out, progress),
        f"CLIP finds the caption of {CHOICES}": caption_retrieval(family, held_out, progress),
    }
    figures |= measure_faces(family, held_out, progress)
    judged = partial(judged_share, family, judge, held_out, progress=progress)
    for aspect, share in judged(range(len(held_out)), held_out.pictures).items():
        figures[f"judge, renders: {aspect}"] = share
    made = generate(family, [truth["caption"] for truth in held_out.truth[:generated]], guidance_scale, steps, progress)
    for aspect, share in judged(range(generated), lambda numbers: made[list(numbers)]).items():
        figures[f"text to image: {aspect}"] = share
    figures["text to image: Fréchet distance on embedded CLIP features"] = feature_distance(family, made, held_out)
    return figures


def measure_faces(family: EmbeddedFamily, held_out: PortraitSet, progress: Progress) -> dict[str, float]:
    """The figures of the models that stand on no other: face embedder and face detector, where they are there."""
    figures = {}
    if family.face_embedder is not None:
        figures["face verification"] = face_verification(family, held_out)
    if family.face_detector is not None:
        step = partial(progress, "face detector")
        found = detection_scores(family.face_detector, held_out, len(held_out), step)
        figures |= {f"face detector: {name}": value for name, value in found.items()}
    return figures


@torch.no_grad()
def autoencoder_psnr(family: EmbeddedFamily, portraits: PortraitSet, progress: Progress) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of reconstructions, in dB."""
    ratios = []
    for chosen in batches(len(portraits), 8):
        pictures = portraits.pictures(chosen)
        errors = ((reconstruct(family.base.vae, pictures) - pictures) / 2).square().mean((1, 2, 3))
        ratios.append(-10 * errors.log10())
        progress("autoencoder", chosen.stop, len(portraits))
    return torch.cat(ratios).mean().item()


@torch.no_grad()
def caption_retrieval(family: EmbeddedFamily, portraits: PortraitSet, progress: Progress) -> float:
    """Share of pictures whose complete caption is the nearest of ``CHOICES``, among them its own.

    Raises ``ValueError`` for fewer portraits than that.
    """
    right, seen, total = 0, 0, len(portraits) // CHOICES * CHOICES
    if not total:
        raise ValueError(f"the held-out set has {len(portraits)} portraits: generate at least {CHOICES}.")
    for chosen in batches(total, CHOICES):
        pictures = image_features(family, portraits.pictures(chosen))
        texts = text_features(family, [portraits.truth[index]["caption"] for index in chosen])
        right += int(((pictures @ texts.T).argmax(1) == torch.arange(len(chosen))).sum())
        seen += len(chosen)
        progress("CLIP", seen, total)
    return right / seen


def face_verification(family: EmbeddedFamily, portraits: PortraitSet) -> float:
    """Share of pairs of faces told rightly as of one person or two."""
    with torch.no_grad():
        vectors = embeddings_of(family.face_embedder, portraits, range(len(portraits)))
    labels = torch.tensor([truth["label"] for truth in portraits.truth])
    return verification_accuracy(*pair_similarities(vectors, labels))


@torch.no_grad()
def generate(
    family: EmbeddedFamily, captions: list[str], guidance_scale: float, steps: int, progress: Progress, batch: int = 20
) -> Tensor:
    """Pictures [N, 3, 128, 128] in -1..1 of captions, one from each seed 0..N-1, by diffusers' own pipeline."""
    base, made = family.base, []
    pipeline = stock_pipeline(base, base.unet)
    empty = base.encode_prompts([""])["prompt"]
    for chosen in batches(len(captions), batch):
        latents = pipeline(
            prompt_embeds=base.encode_prompts([captions[index] for index in chosen])["prompt"],
            negative_prompt_embeds=empty.expand(len(chosen), -1, -1), height=128, width=128,
            num_inference_steps=steps, guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in chosen], output_type="latent",
        ).images  # fmt: skip
        made.append(decode(base.vae, latents) * 2 - 1)
        progress("text to image", chosen.stop, len(captions))
    return torch.cat(made)


def judged_share(
    family: EmbeddedFamily, judge: Judge, portraits: PortraitSet, indices, pictures: Callable, progress: Progress
) -> dict[str, float]:
    """For each aspect the share of pictures in which the judge sees what the portrait's truth (and caption) says."""
    right = dict.fromkeys(ASPECTS, 0)
    for chosen in batches(len(indices), 50):
        shown = pictures(chosen)
        found = verdicts(judge, shown, face_landmarks(family, shown))
        for aspect in ASPECTS:
            wanted = [portraits.truth[index][aspect] for index in chosen]
            right[aspect] += sum(one == other for one, other in zip(found[aspect], wanted, strict=True))
        progress("judge", chosen.stop, len(indices))
    return {aspect: count / len(indices) for aspect, count in right.items()}


def face_landmarks(family: EmbeddedFamily, pictures: Tensor) -> Tensor | None:
    """Landmarks [B, 5, 2], in parts of the side, of the surest face in each picture [B, 3, H, W] in -1..1.

    By the family's face detector: NaN where it finds no face, None where there is no detector.
    """
    if family.face_detector is None:
        return None
    points = torch.full((len(pictures), 5, 2), torch.nan)
    for number, picture in enumerate(pictures):
        for face in find_portrait_faces(family.face_detector, picture / 2 + 0.5)[:1]:
            points[number] = face.landmarks / pictures.shape[-1]
    return points


@torch.no_grad()
def feature_distance(family: EmbeddedFamily, made: Tensor, portraits: PortraitSet) -> float:
    """Fréchet distance between generated pictures and held-out renders, on the embedded CLIP's image features."""
    rendered = torch.cat([
        image_features(family, portraits.pictures(chosen)) for chosen in batches(len(portraits), 50)
    ])  # fmt: skip
    generated = torch.cat([image_features(family, made[list(chosen)]) for chosen in batches(len(made), 50)])
    return frechet_distance(generated, rendered)


@torch.no_grad()
def image_features(family: EmbeddedFamily, pictures: Tensor) -> Tensor:
    """Unit vectors [B, D] of pictures [B, 3, 128, 128] in -1..1."""
    return torch.nn.functional.normalize(family.image_encoder(pictures).image_embeds.float(), dim=1)


@torch.no_grad()
def text_features(family: EmbeddedFamily, texts: list[str]) -> Tensor:
    """Unit vectors [B, D] of texts."""
    tokens = tokenize(family.base.tokenizers[0], texts)
    return torch.nn.functional.normalize(family.text_tower(tokens).text_embeds.float(), dim=1)
