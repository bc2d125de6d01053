"""A classifier of expression, costume and light: it judges generated portraits, and is no part of what makes them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

from ..configuration import option
from ..portraits import COSTUMES, EXPRESSIONS, LIGHTINGS
from ..training.task import BatchRandom, Example, Validation
from .architectures import build, convnext
from .components import TRANSFORMERS, plain_config, save_component
from .portrait_set import DataSettings, PortraitTask, batches

# Where faces are in portraits, whoever it is and however they turn.
FACE_ROWS, FACE_COLUMNS = slice(16, 104), slice(20, 108)
ASPECTS = {"expression": EXPRESSIONS, "costume": COSTUMES, "lighting": tuple(LIGHTINGS)}


@dataclass(frozen=True)
class JudgeSettings(DataSettings):
    """Judge: data and augmentation."""

    shift: int = option(8, "portraits are moved by up to so many pixels", minimum=0, maximum=32)
    soften: float = option(0.5, "share of portraits that are made as soft as an autoencoder makes them", minimum=0,
                           maximum=1)  # fmt: skip


class Judge(nn.Module):
    """Two networks, one for the whole picture at half its size and one for the face, and a head for each aspect."""

    def __init__(self):
        super().__init__()
        self.whole, self.face = convnext(), convnext()
        width = self.face.config.hidden_sizes[-1]
        self.heads = nn.ModuleDict({aspect: nn.Linear(width, len(names)) for aspect, names in ASPECTS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits [B, classes] by aspect of pixels [B, 3, 128, 128] in -1..1."""
        whole = self.whole(avg_pool2d(pixels, 2)).pooler_output
        face = self.face(pixels[:, :, FACE_ROWS, FACE_COLUMNS]).pooler_output
        seen = {"expression": face, "costume": whole, "lighting": whole}
        return {aspect: head(seen[aspect]).float() for aspect, head in self.heads.items()}


class TrainJudge(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-judge"
    Settings = JudgeSettings
    summary = "a classifier of expression, costume and light, to judge generated portraits with"

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return build(Judge, seed=self.seed).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        picture, truth = self.portraits.picture(example.payload)[None], self.portraits.truth[example.payload]
        side = self.settings.shift
        top, left = torch.randint(0, 2 * side + 1, (2,), generator=draw).tolist()
        if torch.rand(1, generator=draw) < self.settings.soften:
            picture = avg_pool2d(pad(picture, [1] * 4, mode="replicate"), 3, stride=1)
        picture = pad(picture, [side] * 4, mode="replicate")[0, :, top : top + 128, left : left + 128]
        picture = (picture + 0.02 * torch.randn(picture.shape, generator=draw)).clamp(-1, 1)
        return {"pixels": picture, **{aspect: _number(aspect, truth) for aspect in ASPECTS}}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        logits = network(batch["pixels"])
        return {aspect: cross_entropy(logits[aspect], batch[aspect]) for aspect in ASPECTS}

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
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


def _number(aspect: str, truth: dict) -> Tensor:
    return torch.tensor(ASPECTS[aspect].index(truth[aspect]))


@torch.no_grad()
def verdicts(judge: Judge, pictures: Tensor) -> dict[str, list[str]]:
    """What the judge sees in pictures [B, 3, 128, 128] in -1..1, by aspect."""
    logits = judge(pictures.to(next(judge.parameters()).device))
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
