"""A classifier of expression, costume and light: it judges generated portraits, and is no part of what makes them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

from ..configuration import option
from ..faces import align_faces
from ..portraits import COSTUMES, EXPRESSIONS, LIGHTINGS
from ..training.task import BatchRandom, Example, Validation
from .architectures import FACE_SIZE, build, convnext
from .components import TRANSFORMERS, plain_config, save_component
from .face_embedder import FIVE, landmarks_of
from .portrait_set import DataSettings, PortraitTask, batches, shifted

ASPECTS = {"expression": EXPRESSIONS, "costume": COSTUMES, "lighting": tuple(LIGHTINGS)}


@dataclass(frozen=True)
class JudgeSettings(DataSettings):
    """Judge: data and augmentation."""

    shift: int = option(8, "portraits are moved by up to so many pixels", minimum=0, maximum=32)
    jitter: float = option(0.015, "landmarks are moved by about this part of the picture", minimum=0)
    soften: float = option(0.5, "share of portraits that are made as soft as an autoencoder makes them", minimum=0,
                           maximum=1)  # fmt: skip


class Judge(nn.Module):
    """One network for the whole picture at half its size, which also finds the face, and one for the aligned face."""

    def __init__(self):
        super().__init__()
        self.whole, self.face = convnext(), convnext()
        width = self.face.config.hidden_sizes[-1]
        self.landmarks = nn.Linear(width, 2 * len(FIVE))
        self.heads = nn.ModuleDict({aspect: nn.Linear(width, len(names)) for aspect, names in ASPECTS.items()})

    def forward(self, pixels: Tensor, landmarks: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [B, classes] by aspect, and "landmarks" [B, 5, 2], of pixels [B, 3, H, W] in -1..1.

        landmarks: [B, 5, 2] in parts of the picture's side; where they are None or not finite, those that it finds
        itself. Its own are six pixels off, so give a face detector's where there is one.
        """
        whole = self.whole(avg_pool2d(pixels, 2)).pooler_output
        found = self.landmarks(whole).float().unflatten(1, (-1, 2)) / 10 + 0.5
        points = found.detach()
        if landmarks is not None:
            points = torch.where(landmarks.isfinite(), landmarks, points)
        face = self.face(align_faces(pixels, points * pixels.shape[-1], FACE_SIZE)).pooler_output
        seen = {"expression": face, "costume": whole, "lighting": whole}
        return {"landmarks": found} | {aspect: head(seen[aspect]).float() for aspect, head in self.heads.items()}


class TrainJudge(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-judge"
    Settings = JudgeSettings
    summary = "a classifier of expression, costume and light, to judge generated portraits with"

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return build(Judge, seed=self.seed).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        truth = self.portraits.truth[example.payload]
        picture, moved = shifted(self.portraits.picture(example.payload), self.settings.shift, draw)
        if torch.rand(1, generator=draw) < self.settings.soften:
            picture = avg_pool2d(pad(picture[None], [1] * 4, mode="replicate"), 3, stride=1)[0]
        picture = (picture + 0.02 * torch.randn(picture.shape, generator=draw)).clamp(-1, 1)
        points = (landmarks_of(truth) + moved) / picture.shape[-1]
        near = points + self.settings.jitter * torch.randn(points.shape, generator=draw)
        labels = {aspect: torch.tensor(ASPECTS[aspect].index(truth[aspect])) for aspect in ASPECTS}
        return {"pixels": picture, "landmarks": points, "near": near, **labels}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        seen = network(batch["pixels"], batch["near"])
        placed = 10 * (seen["landmarks"] - batch["landmarks"]).abs().mean()
        return {"landmarks": placed} | {aspect: cross_entropy(seen[aspect], batch[aspect]) for aspect in ASPECTS}

    def validate(self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]) -> Validation:
        count = min(1000 if steps is None else 32, len(self.held_out))
        right = dict.fromkeys(ASPECTS, 0)
        for chosen in batches(count, 64):
            check_stop()
            found = verdicts(network, self.held_out.pictures(chosen))
            for aspect in ASPECTS:
                wanted = [self.held_out.truth[index][aspect] for index in chosen]
                right[aspect] += sum(one == other for one, other in zip(found[aspect], wanted, strict=True))
        return Validation({}, {aspect: number / count for aspect, number in right.items()})

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        save_component(folder / "judge", TRANSFORMERS, plain_config(convnext()), weights, facts)


@torch.no_grad()
def verdicts(judge: Judge, pictures: Tensor, landmarks: Tensor | None = None) -> dict[str, list[str]]:
    """What the judge sees in pictures [B, 3, 128, 128] in -1..1, by aspect; ``landmarks`` as it takes them."""
    device = next(judge.parameters()).device
    logits = judge(pictures.to(device), None if landmarks is None else landmarks.to(device))
    return {aspect: [ASPECTS[aspect][row] for row in logits[aspect].argmax(1).tolist()] for aspect in ASPECTS}


def load_judge(folder: Path) -> Judge:
    """The judge that the task exported. Raises ``ValueError`` where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    judge = Judge()
    try:
        judge.load_state_dict(load_file(folder / TRANSFORMERS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no judge ({error}): give the folder that embedded-judge exported.") from error
    return judge.eval()
