"""Attention control: which parts of the target's attention are taken from the source.

Rows of a batch are branches: 0 the source, 1 the target, and where it is asked for 2 the layout branch (InfEdit's
"mutual"). Two controls share the form: InfEdit's unified attention control and Prompt-to-Prompt.

Cross-attention maps are never made. The papers replace the target's map M_t by M_s T' + M_t diag(own), where M_s is the
source's, T' moves columns from source tokens to target tokens and "own" is what a token keeps. Its product with the
values is linear in them,

    (M_s T' + M_t diag(own)) v_t = M_s (T' v_t) + M_t (own v_t),

which is two ordinary attention calls with other values: any fast attention works, and no memory is spent on maps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .prompts import PromptTokens, alignment

SOURCE, TARGET, LAYOUT = range(3)
METHODS = ("unified", "refine", "replace")
# A fraction of n steps such as 12/15 must compare equal to 0.8 whatever its rounding.
_ROUNDING = 1e-9


class BranchSources(NamedTuple):
    """For each branch, the branch whose queries, keys and values it attends with."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]


# InfEdit's self-attention (notes 2.9): first the source's maps for all, later the target's layout with source content.
EARLY_SELF = BranchSources((0, 0, 0), (0, 0, 0), (0, 1, 0))
LATE_SELF = BranchSources((0, 1, 1), (0, 1, 0), (0, 1, 0))
OWN_SELF = BranchSources((0, 1, 2), (0, 1, 2), (0, 1, 2))


@dataclass(frozen=True)
class AttentionSettings:
    """How much of the source's attention an edit keeps.

    method: "unified" (InfEdit; authors' code), or Prompt-to-Prompt's "refine" (aligned words) and "replace" (word for
        word, prompts of equally many words).
    cross_fraction, self_fraction: part of the steps in which cross- and self-attention are taken over (paper: 0.8).
    layout_branch: take the cross-attention maps from the layout branch, as InfEdit's benchmark does. Without it that
        branch has no influence on the target whatever (SPL's and InfEdit's app run it for nothing), so it is left out.
        With it, it equals the source until self_fraction, so it matters only where cross_fraction is the larger.
    self_limit: largest number of image tokens in which Prompt-to-Prompt replaces self-attention (authors' code: 32x32).
    word_weights: target word -> factor on its attention while cross-attention is taken over (Prompt-to-Prompt).
    """

    method: str = "unified"
    cross_fraction: float = 0.8
    self_fraction: float = 0.8
    layout_branch: bool = False
    self_limit: int = 32 * 32
    word_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"the attention method is {self.method!r}: use one of {', '.join(METHODS)}.")
        for name in ("cross_fraction", "self_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a fraction of the steps, between 0 and 1.")
        if self.layout_branch and self.method != "unified":
            raise ValueError(f"layout_branch belongs to the unified method, not to {self.method!r}: switch it off.")
        if self.word_weights and self.cross_fraction == 0:
            raise ValueError(
                "word_weights act in the steps of cross_fraction, which is 0: raise it, or leave the weights out."
            )

    @property
    def branches(self) -> int:
        return 3 if self.layout_branch else 2

    @property
    def acts(self) -> bool:
        """Whether anything is ever taken over."""
        return self.cross_fraction > 0 or self.self_fraction > 0


@dataclass(frozen=True, eq=False)
class CrossEdit:
    """The target's cross-attention map as M_s @ transfer.T + M_t * own.

    transfer: ``[target tokens, source tokens]``, the share of a source column that a target token receives.
    own: ``[target tokens]``, the share of its own column that a target token keeps.
    """

    transfer: torch.Tensor
    own: torch.Tensor
    _placed: dict = field(default_factory=dict, init=False, repr=False)

    def weighted(self, weights: torch.Tensor) -> "CrossEdit":
        """The same with each target token's attention multiplied by ``weights`` ``[target tokens]``."""
        return CrossEdit(self.transfer * weights[:, None], self.own * weights)

    def repeated(self, length: int) -> "CrossEdit":
        """The same for prompts that the host has repeated to ``length`` tokens each, as ComfyUI does to batch them.

        Repeating all tokens changes no attention, but splits each column among its copies: every copy on the source's
        side must lead to the target's value, which one copy on the target's side is enough to supply.
        """
        tokens, source_tokens = self.transfer.shape
        if length % tokens or length % source_tokens:
            raise ValueError(
                f"the model attends to {length} tokens, the prompts have {tokens} (target) and {source_tokens} "
                "(source): use the conditioning that was encoded from these prompts."
            )
        transfer = self.transfer.new_zeros(length, length)
        transfer[:tokens] = self.transfer.repeat(1, length // source_tokens)
        return CrossEdit(transfer, self.own.repeat(length // tokens))

    def beside(self, values: torch.Tensor) -> "CrossEdit":
        """``repeated`` for ``values`` ``[B, tokens, width]``, on their device and of their type.

        Kept, because every layer of every step asks for it, and a GPU waits for each copy.
        """
        place = values.shape[1], values.device, values.dtype
        if place not in self._placed:
            edit = self.repeated(values.shape[1])
            self._placed[place] = CrossEdit(edit.transfer.to(values), edit.own.to(values))
        return self._placed[place]


def refinement(source: PromptTokens, target: PromptTokens) -> CrossEdit:
    """Aligned tokens take the source's column, new ones keep their own (Hertz et al. 2023; notes 2.9)."""
    transfer = torch.zeros(target.length, source.length)
    for j, i in enumerate(alignment(source, target)):
        if i >= 0:
            transfer[j, i] = 1
    return CrossEdit(transfer, 1 - transfer.sum(dim=1))


def replacement(source: PromptTokens, target: PromptTokens) -> CrossEdit:
    """The n-th word takes the column of the source's n-th word (Hertz et al. 2023, word swap).

    A word of another number of tokens takes the sum of the source word's columns, shared out evenly.
    """
    if len(source.words) != len(target.words):
        raise ValueError(
            f"the source prompt has {len(source.words)} words and the target prompt {len(target.words)}: word for word "
            "replacement needs equally many. Change the prompts, or use the method refine."
        )
    transfer = torch.zeros(target.length, source.length)
    free = [set(range(prompt.length)) for prompt in (source, target)]
    for (_, from_places), (_, to_places) in zip(source.words, target.words, strict=True):
        free = [left - set(places) for left, places in zip(free, (from_places, to_places), strict=True)]
        if len(from_places) == len(to_places):
            transfer[list(to_places), list(from_places)] = 1
        elif from_places:
            transfer[torch.tensor(to_places)[:, None], torch.tensor(from_places)] = 1 / len(to_places)
    # What is no word: opening and closing tokens, punctuation, padding; in order, as far as both have them.
    for i, j in zip(*(sorted(left) for left in free), strict=False):
        transfer[j, i] = 1
    return CrossEdit(transfer, (transfer.sum(dim=1) == 0).float())


class AttentionControl:
    """Attention control of one edit: ``settings`` applied to two prompts. Holds no state of a run."""

    def __init__(self, settings: AttentionSettings, source: PromptTokens, target: PromptTokens):
        self.settings = settings
        edit = replacement(source, target) if settings.method == "replace" else refinement(source, target)
        weights = torch.ones(target.length)
        for word, weight in settings.word_weights.items():
            weights[target.positions(word)] = weight
        self.cross = edit.weighted(weights)

    def cross_acts(self, step: int, steps: int) -> bool:
        """Whether cross-attention is taken over in step 0..steps-1: c >= (step + 1) / steps."""
        return self.settings.cross_fraction >= (step + 1) / steps - _ROUNDING

    def self_sources(self, step: int, steps: int, tokens: int, conditional: bool) -> BranchSources:
        """Whose self-attention each branch uses in this step, for ``tokens`` image tokens, in one half of guidance."""
        early = self.settings.self_fraction > (step + 1) / steps + _ROUNDING
        if self.settings.method == "unified":
            rule = EARLY_SELF if early else LATE_SELF
        else:
            rule = EARLY_SELF if early and conditional and tokens <= self.settings.self_limit else OWN_SELF
        return BranchSources(*(branches[: self.settings.branches] for branches in rule))


def choose_branches(x: torch.Tensor, sources: tuple[int, ...]) -> torch.Tensor:
    """Rows ``[branches * B, ...]`` with the rows of each branch taken from the branch named in ``sources``."""
    if sources == tuple(range(len(sources))):
        return x
    branches = x.chunk(len(sources))  # an index would be sent to the GPU, which waits for it, in every layer
    return torch.cat([branches[source] for source in sources])


def edited_cross_attention(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    edit: CrossEdit,
    branches: int,
) -> torch.Tensor:
    """Cross-attention output of the target's rows, with its map edited.

    ``q``, ``k``, ``v``: ``[branches * B, tokens, width]``, one half of guidance. ``attend`` is the host's attention.
    The maps come from the last branch that is not the target: the layout's where there is one. Returns ``[B, tokens,
    width]``.
    """
    edit = edit.beside(v)
    maps_from = LAYOUT if branches > LAYOUT else SOURCE
    queries, keys, values = (x.chunk(branches) for x in (q, k, v))
    moved = attend(queries[maps_from], keys[maps_from], edit.transfer.T @ values[TARGET])
    return moved + attend(queries[TARGET], keys[TARGET], edit.own[:, None] * values[TARGET])
