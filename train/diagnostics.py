"""Numbers that tell learning from collapse.

Shapes: B volumes, T target tokens, C channels, V vectors, M measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.objective import Batch, Outcome
from train.ranks import Ranks
from train.sharding import whole

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import Recipe

# Alarms. Layer-normed features of a healthy encoder spread by 0.3 to 1.0 per channel over tokens and their
# mean token cosine is below 0.9; a constant encoder has 0 and 1.
MIN_FEATURE_STD: Final = 0.05
MAX_TOKEN_COSINE: Final = 0.99
MEASURES: Final = (
    "loss", "loss_total", "loss_trivial", "cosine", "cosine_trivial", "feature_std", "feature_std_min", "context_std",
    "token_cosine", "content_tokens", "content_share", "masked_share",
)  # fmt: skip
MIN_VIEW_CORRELATION: Final = 0.5  # noise of a whole deviation leaves 0.7; another place of an eye about 0.2
FLAT_LOSS: Final = 0.97  # of the loss of a constant; a run that learns is far below it by then
LEAST_MOTION: Final = 1e-6  # relative; less is lost in the rounding of float32
NOISE_FLOOR: Final = 1e-3  # singular values below this share of the vectors' own size are rounding, not rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What is kept of a forward pass: means over its volumes, in the order of `MEASURES`, and one vector a volume."""

    num_volumes: int
    means_M: Tensor
    pooled_BC: Tensor


@torch.no_grad()
def measure(outcome: Outcome, batch: Batch) -> Measures:
    """Reduce an outcome to its measures, on the device."""
    predicted_BTC, target_BTC = outcome.predicted_BTC.detach(), outcome.target_BTC
    content_B = batch.content_BN.sum(1)
    std_C = channel_std(outcome.features_BTC)
    found = {
        "loss": outcome.loss.detach(),
        "loss_total": outcome.total_loss.detach(),
        "loss_trivial": outcome.trivial_loss,
        "cosine": cosine(predicted_BTC, target_BTC),
        "cosine_trivial": trivial_cosine(target_BTC),
        "feature_std": std_C.mean(),
        "feature_std_min": std_C.min(),  # amin of no axis reduces none on XLA
        "context_std": feature_std(outcome.context_BKC),
        "token_cosine": token_cosine(outcome.features_BTC),
        "content_tokens": content_B.float().mean(),
        "content_share": content_B.float().mean() / batch.content_BN.shape[1],
        "masked_share": (batch.hidden_BN.sum(1) / content_B).mean(),
    }
    means_M = torch.stack([found[name].float() for name in MEASURES])
    return Measures(num_volumes=len(outcome.pooled_BC), means_M=means_M, pooled_BC=outcome.pooled_BC)


def summarise(measures: Sequence[Measures], ranks: Ranks) -> dict[str, float]:
    """Means over all volumes of all ranks, which have measured the same things."""
    sums = torch.zeros(len(MEASURES) + 1, dtype=torch.float64)
    for part in measures:
        sums += part.num_volumes * torch.cat([part.means_M.cpu().double(), torch.ones(1, dtype=torch.float64)])
    ranks.add_up([sums])
    return {name: float(total / sums[-1]) for name, total in zip(MEASURES, sums, strict=False)}


def cosine(predicted_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """Mean cosine of predictions and targets: 1 is perfect; compare with `trivial_cosine`."""
    return functional.cosine_similarity(predicted_BTC, target_BTC, dim=-1).mean()


def trivial_cosine(target_BTC: Tensor) -> Tensor:
    """The cosine that the best constant reaches: predicting the mean direction of all targets."""
    unit_VC = functional.normalize(target_BTC.flatten(0, 1), dim=-1)
    length: Tensor = torch.linalg.vector_norm(unit_VC.mean(0))
    return length


def feature_std(x_BTC: Tensor) -> Tensor:
    """Standard deviation over tokens and volumes, mean over channels; 0 when every token is the same."""
    return channel_std(x_BTC).mean()


def channel_std(x_BTC: Tensor) -> Tensor:
    """Standard deviation over tokens and volumes of each channel, `[C]`."""
    return x_BTC.flatten(0, 1).std(0, correction=0)


def token_cosine(target_BTC: Tensor) -> Tensor:
    """Mean cosine between two different tokens of a volume; 1 when a volume's tokens are all the same."""
    unit_BTC = functional.normalize(target_BTC, dim=-1)
    T = unit_BTC.shape[1]
    total_B = unit_BTC.sum(1).square().sum(-1)
    return ((total_B - T) / max(1, T * (T - 1))).mean()


def rankme(pooled_VC: Tensor) -> Tensor:
    """Effective rank across volumes (RankMe, Garrido et al. 2023): exp of the entropy of singular values.

    Of centred vectors, so that it measures in how many directions volumes differ; at most V - 1, and 1 if all
    volumes are the same. One value per volume is needed: tokens of one volume say nothing about others. NaN of what is
    not finite.
    """
    if len(pooled_VC) < 2:
        return torch.ones(())
    if not pooled_VC.isfinite().all():
        return torch.full((), torch.nan)
    centred_VC = pooled_VC.float() - pooled_VC.float().mean(0)
    singular = torch.linalg.svdvals(centred_VC)
    singular = singular * (singular > NOISE_FLOOR * pooled_VC.float().norm())
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float32).tiny)
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()


@torch.no_grad()
def weight_distance(target: nn.Module, context: nn.Module) -> Tensor:
    """Distance of the target's weights from the context's, relative to the size of the context's.

    It is 0 before the first update; with a target that never moves it only grows.
    """
    both = ((whole(a), whole(b)) for a, b in zip(target.parameters(), context.parameters(), strict=True))
    sums = [((a - b).square().sum(), b.square().sum()) for a, b in both]  # one pair of whole weights at a time
    return (torch.stack([one for one, _ in sums]).sum() / torch.stack([one for _, one in sums]).sum()).sqrt()


def alarms(row: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What a reader of a row must know, by the measures that it has.

    `collapse`: the target's features, or the context's, are or nearly are constant. `leak`: predictions depend on
    what they predict.
    `independent views`: context and target show different places. `frozen target`: the context moves, the target does
    not. `flat loss`: half of the run is over, and a constant predicts as well.
    """
    found = {
        "collapse": min(row["feature_std"], row["context_std"]) < MIN_FEATURE_STD
        or row["token_cosine"] > MAX_TOKEN_COSINE,
        "leak": row.get("leak", 0.0) > 0,
        "independent views": row.get("view_correlation", 1.0) < MIN_VIEW_CORRELATION,
        "frozen target": _is_frozen(row, recipe),
        "flat loss": row.get("split") == "val"
        and row["step"] >= recipe.train.max_steps / 2
        and row["loss"] > FLAT_LOSS * row["loss_trivial"],
    }
    return [name for name, is_so in found.items() if is_so]


def _is_frozen(row: Mapping[str, Any], recipe: Recipe) -> bool:
    """Near the end its momentum nears 1, and what it should move is less than a float32 can tell."""
    if row.get("target_moved", 1.0) > 0 or row["context_moved"] == 0:
        return False
    should_move = (1 - row["ema_momentum"]) * row["target_context_distance"]
    return bool(should_move > LEAST_MOTION or recipe.optim.ema_start == 1)
