"""Scoring on held-out volumes, with masks that never change, and proof that the score measures something."""

import math
from collections.abc import Sequence

import torch

from shards.reader import Dataset
from shards.schema import Sample
from train.config import Recipe
from train.device import Device
from train.diagnostics import Measures, measure, rankme, summarise
from train.errors import ValidationError
from train.feed import validation_batch
from train.groups import by_groups
from train.objective import Networks, evaluate
from train.signals import Stop


def validate(
    networks: Networks, dataset: Dataset, recipe: Recipe, device: Device, stop: Stop | None = None
) -> tuple[dict[str, float], torch.Tensor]:
    """Every volume of the dataset once, shared out over ranks: mean loss, cosine and the measures of diagnostics.

    Returns:
        the measures, and the pooled features of each volume, `[V, C]` on the device.

    Raises:
        StopRequestedError: on all ranks, if one is asked to stop.
        TrainError: if one volume does not fit into memory.
    """
    stop = stop or Stop()
    networks.eval()
    ranks, total = device.ranks, len(dataset.samples)

    def score(samples: Sequence[Sample]) -> Measures:
        batch = validation_batch(samples, recipe, device)
        with device.autocast():
            outcome = evaluate(networks, batch)
        found = measure(outcome, batch)
        device.send_off()
        return found

    with torch.no_grad(), stop.agreed(ranks):
        measures = by_groups(dataset, recipe.train.micro_batch, device, score, stop)
    networks.train()
    vectors = [one.pooled_BC for one in measures] or [torch.zeros(0, networks.target.dim, device=device.torch_device)]
    pooled_VC = ranks.gather(torch.cat(vectors), total)
    rank = float(rankme(pooled_VC))
    return {**summarise(measures, ranks), "rankme": rank, "num_volumes": float(total)}, pooled_VC


def check_varies(loss: float, step: int, *, previous: float | None) -> None:
    """Refuse a validation loss that cannot tell one model from another.

    The predecessor validated with an empty mask: its loss was exactly 0 at every epoch, so the first was "best".

    Args:
        loss: of this validation.
        step: updates made so far.
        previous: loss of the validation before; None if there is none, or the weights are what they were then.

    Raises:
        ValidationError: if the loss is not finite, exactly 0, or exactly what it was.
    """
    if not math.isfinite(loss) or loss == 0:
        raise ValidationError(f"the validation loss at step {step} is {loss}: it measures nothing; look at its masks.")
    if loss == previous:
        raise ValidationError(
            f"the validation loss at step {step} is exactly what it was before ({loss}): the weights it scores do "
            "not change, or it does not look at them."
        )
