"""What a run proves about itself while it trains: masks hide, both views show one place, the target moves.

Shapes: B volumes, D H W voxels, N tokens, T target tokens.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from shards.reader import Dataset, read_sample
from train.config import Recipe
from train.device import Device
from train.feed import training_batch
from train.objective import Batch, Networks, predict
from train.sharding import whole

OTHER_VOXELS: Final = 10.0
"""What is added to masked voxels, in deviations of the volume: whatever looks at them cannot miss it."""

SAMPLE: Final = 64
"""Numbers of each weight that tell whether it moved."""


@torch.no_grad()
def leak(networks: Networks, batch: Batch) -> float:
    """By how much predictions change when the voxels of their targets change in the context's view: exactly 0.

    The tokens to predict are what must not be seen; whatever a mask calls hidden is not asked.
    """
    was_training = networks.training
    networks.eval()
    expected, found = (
        predict(networks, one) for one in (batch, replace(batch, context_BDHW=_changed_targets(networks, batch)))
    )
    networks.train(was_training)
    return float((found.float() - expected.float()).abs().max())


def _changed_targets(networks: Networks, batch: Batch) -> Tensor:
    chosen_BN = torch.zeros_like(batch.content_BN).scatter(1, batch.targets_BT, True)
    d, h, w = networks.context.token_grid
    voxels = chosen_BN.view(-1, d, h, w)
    for axis, edge in enumerate(networks.context.patch, start=1):
        voxels = voxels.repeat_interleave(edge, dim=axis)
    return torch.where(voxels, batch.context_BDHW + OTHER_VOXELS, batch.context_BDHW)


@torch.no_grad()
def view_correlation(batch: Batch) -> float:
    """Pearson correlation of the context's view and the target's, the least of any volume: near 1 but for noise.

    Views of different places have little in common (PREDECESSOR: a target that is elsewhere can only be guessed).
    """
    pairs = torch.stack([batch.context_BDHW.flatten(1), batch.target_BDHW.flatten(1)]).float()
    centred = pairs - pairs.mean(-1, keepdim=True)
    unit = centred / centred.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return float((unit[0] * unit[1]).sum(-1).min())


def check_itself(networks: Networks, dataset: Dataset, recipe: Recipe, device: Device) -> dict[str, float]:
    """`leak` and `view_correlation` of a training batch of one volume, made as the run makes them."""
    batch = training_batch([(0, read_sample(dataset, dataset.samples[0]))], recipe, device)
    with device.autocast():
        found = leak(networks, batch)
    return {"leak": found, "view_correlation": view_correlation(batch)}


@dataclass(slots=True, kw_only=True)
class Motion:
    """How far two networks have moved since the last look, by a sample of their weights."""

    target: Tensor
    context: Tensor

    @classmethod
    def of(cls, networks: Networks) -> "Motion":
        return cls(target=_sample(networks.target), context=_sample(networks.context))

    def look(self, networks: Networks) -> dict[str, float]:
        """Relative changes, and remember what is seen."""
        now = Motion.of(networks)
        moved = {"target_moved": _change(self.target, now.target), "context_moved": _change(self.context, now.context)}
        self.target, self.context = now.target, now.context
        return moved


@torch.no_grad()
def _sample(module: nn.Module) -> Tensor:
    return torch.cat([_few(whole(weight).detach().flatten()) for weight in module.parameters()])


def _few(weight: Tensor) -> Tensor:
    """Some of its numbers, in memory of their own."""
    return weight[:: max(1, len(weight) // SAMPLE)][:SAMPLE].clone()


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm().clamp_min(torch.finfo(torch.float32).tiny))
