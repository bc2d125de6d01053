"""The settings of IDetail's two training tasks; defaults are the paper's, or section 10 of the method's notes."""

from dataclasses import dataclass
from pathlib import Path

from ..configuration import SettingsError, option
from ..training.base_model_task import BaseModelSettings
from ..training.settings import DTYPES
from .conditioning import ORDERS, STAGE_ONE_INPUTS
from .losses import LossWeights
from .takes import PAIRINGS


@dataclass(frozen=True)
class RelightSettings(BaseModelSettings):
    """What both stages share: model, data, channels."""

    data: Path = option(help="data set of people in many lights, of `dataset_cli.py generate idetail` or "
                        "`generate idetail_portraits`")  # fmt: skip
    held_out: Path | None = option(None, "data set of other people, to validate on (default: the training data)")
    partial: bool = option(False, "take the finished shards of a data set that is not finished, such as one with a "
                           "person whom the generator cannot draw")  # fmt: skip
    resolution: int = option(1024, "pictures are trained at about this squared pixels; the paper's 1024", minimum=8,
                             fixed=True)  # fmt: skip
    order: str = option(ORDERS[0], "order of the channels", choices=ORDERS, fixed=True)
    caption_dropout: float = option(0.1, "fraction of prompts left empty, so that guidance works", minimum=0,
                                    maximum=1)  # fmt: skip
    validation_pairs: int = option(4, "pairs shown in a validation", minimum=1)
    validation_steps: int = option(25, "sampling steps of validation pictures", minimum=1)
    guidance_scale: float = option(5.0, "classifier-free guidance of validation pictures", minimum=0)


@dataclass(frozen=True)
class ConvInSettings(RelightSettings):
    """Stage 1: the first convolution learns to see the photo. The paper: 200,000 steps of 8, learning rate 1e-5."""

    data: Path = option(help="folder of pictures with captions, or a data set as for stage 2")
    stage_one_input: str = option(STAGE_ONE_INPUTS[0], "what the nine channels hold; the paper's words taken literally "
                                  "leave five of them untrained", choices=STAGE_ONE_INPUTS, fixed=True)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RelightLoraSettings(RelightSettings):
    """Stage 2: the LoRA learns to relight. The paper: 100,000 steps of 8, learning rate 8e-5, cosine."""

    conv_in: Path = option(help="file that idetail-conv-in exported")
    train_conv_in: bool = option(False, "train the first convolution on too; the paper freezes it", fixed=True)
    learn_placeholder: bool = option(False, "learn token embeddings of the placeholder, too, exported as a file for "
                                     "`embedding:`; the paper leaves it plain text", fixed=True)  # fmt: skip
    layers: str = option("idetail", "what gets an adapter", choices=("idetail",), fixed=True)
    rank: int = option(32, "rank of the adapters", minimum=1, fixed=True)
    alpha: float | None = option(None, "the adapter adds alpha / rank times its output (default: the rank)",
                                 minimum=0, fixed=True)  # fmt: skip
    pairing: str = option(PAIRINGS[0], "generated inputs with generated targets, or the photo with them: the baseline "
                          "that fails", choices=PAIRINGS, fixed=True)  # fmt: skip
    people: int | None = option(None, "train on the first so many people of the data (default: all)", minimum=1,
                                fixed=True)  # fmt: skip
    identity_weight: float = option(LossWeights.identity, "alpha 1: cosine with the input's foreground", minimum=0,
                                    fixed=True)  # fmt: skip
    foreground_weight: float = option(LossWeights.foreground, "alpha 2: smooth L1 in the foreground", minimum=0,
                                      fixed=True)  # fmt: skip
    background_weight: float = option(LossWeights.background, "alpha 3: L1 in the background", minimum=0,
                                      fixed=True)  # fmt: skip
    noise_weight: float = option(LossWeights.noise, "alpha 4: squared error of the noise", minimum=0, fixed=True)
    latest_timestep: int = option(999, "noise levels above this one are not trained", minimum=0, maximum=999,
                                  fixed=True)  # fmt: skip
    signal_weighting: bool = option(False, "weigh the three losses of the clean estimate by the share of signal, which "
                                    "tames the noisiest levels; the paper does not say", fixed=True)  # fmt: skip
    export_dtype: str = option("fp16", "numbers in the exported files", choices=tuple(DTYPES))

    def __post_init__(self):
        if not any((self.identity_weight, self.foreground_weight, self.background_weight, self.noise_weight)):
            raise SettingsError("all four weights of the losses are 0: there is nothing to learn.")

    @property
    def weights(self) -> LossWeights:
        """The paper's alphas."""
        return LossWeights(self.identity_weight, self.foreground_weight, self.background_weight, self.noise_weight)
