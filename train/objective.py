"""The two objectives: how context and target are encoded, and what the loss compares.

Shapes: B volumes, D H W voxels, N tokens of the grid, K visible tokens, T target tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.device import Device, send
from train.encoder import Block, Encoder, Rotation, take_tokens
from train.masks import TokenMasks
from train.predictor import MlpPredictor, TransformerPredictor
from train.presets import encoder_config
from train.seeding import fold

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import ObjectiveName, Recipe

COMPILATIONS: Final = 64


class Networks(nn.Module):
    """The context encoder, the predictor, and the target encoder, which no gradient reaches."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.objective = recipe.objective
        self.context = Encoder(encoder_config(recipe))
        self.context.blocks.recompute = recipe.train.recompute
        self.predictor = TransformerPredictor(recipe) if self.objective.name == "vjepa" else MlpPredictor(recipe)
        self.target = Encoder(encoder_config(recipe))
        self.target.load_state_dict(self.context.state_dict())
        self.target.requires_grad_(False)

    def learned_parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer moves: all but the target."""
        yield from self.context.parameters()
        yield from self.predictor.parameters()


def build_networks(recipe: Recipe) -> Networks:
    """Networks with the initial weights of the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(recipe.train.seed, "weights"))
        return Networks(recipe)


def compile_blocks(networks: Networks, backend: str = "inductor") -> None:
    """Compile every block in place: weights keep their names, so checkpoints and exports are as without.

    Blocks of one network share what is compiled. Shapes are static: it is compiled once for each network, size of a
    micro-batch, and with or without gradients, a dozen in all, and torch gives up at eight unless told otherwise.
    """
    torch._dynamo.config.recompile_limit = max(COMPILATIONS, torch._dynamo.config.recompile_limit)
    for module in networks.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False, backend=backend)


def build_encoder(recipe: Recipe, *, seed: int | None = None) -> Encoder:
    """An encoder with random weights; with a seed, always the same ones."""
    if seed is None:
        return Encoder(encoder_config(recipe))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(encoder_config(recipe))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one forward pass needs, on the device. Both views have one geometry: they differ in intensity only."""

    context_BDHW: Tensor
    target_BDHW: Tensor
    content_BN: Tensor
    spacing_B3: Tensor
    visible_BK: Tensor
    targets_BT: Tensor
    hidden_BN: Tensor
    scale_BL2: Tensor | None = None

    @classmethod
    def build(
        cls,
        *,
        views: tuple[Tensor, Tensor],
        content_BN: Tensor,
        spacing_B3: Tensor,
        masks: TokenMasks,
        scale_BL2: Tensor | None = None,
    ) -> Self:
        """Put masks, and the factors of stochastic depth if there are any, on the device of the views."""
        device = content_BN.device
        return cls(
            context_BDHW=views[0],
            target_BDHW=views[1],
            content_BN=content_BN,
            spacing_B3=spacing_B3,
            visible_BK=send(torch.from_numpy(masks.visible), device),
            targets_BT=send(torch.from_numpy(masks.targets), device),
            hidden_BN=send(torch.from_numpy(masks.hidden), device),
            scale_BL2=None if scale_BL2 is None else send(scale_BL2, device),
        )

    def over(self, device: Device) -> Self:
        """The same batch, cut over the parts of a device that has several."""
        tensors = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: device.spread(x) for name, x in tensors.items() if x is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The loss, mean over volumes, and what it was computed from."""

    loss: Tensor  # at the targets
    total_loss: Tensor  # what is minimised: with `objective.context_weight`, that at the visible tokens is added
    trivial_loss: Tensor  # of the best constant prediction, near enough: the mean of these targets
    predicted_BTC: Tensor
    target_BTC: Tensor
    features_BTC: Tensor  # the target's output there, which `target_BTC` is, too, unless all blocks are predicted
    context_BKC: Tensor  # what the context encoder makes of the visible tokens, layer-normed for `vjepa`
    pooled_BC: Tensor  # mean of the target's content tokens, layer-normed


def evaluate(networks: Networks, batch: Batch) -> Outcome:
    """Run the objective on a batch."""
    name, weight = networks.objective.name, networks.objective.context_weight
    with torch.no_grad():
        goal_BNC, features_BNC, pooled_BC = _encode_goal(networks, batch)
        target_BTC, features_BTC = (take_tokens(one, batch.targets_BT) for one in (goal_BNC, features_BNC))
        trivial_loss = compare(name, target_BTC.mean((0, 1)).expand_as(target_BTC), target_BTC)
    predicted, context_BKC = _predict_from_context(networks, batch, everywhere=weight > 0)
    T, seen_BKC = target_BTC.shape[1], context_BKC.detach().float()
    predicted_BTC = predicted[:, -T:].float()
    loss = compare(name, predicted_BTC, target_BTC)
    total_loss = loss
    if weight:
        total_loss = loss + weight * compare(name, predicted[:, :-T].float(), take_tokens(goal_BNC, batch.visible_BK))
    return Outcome(
        loss=loss,
        total_loss=total_loss,
        trivial_loss=trivial_loss,
        predicted_BTC=predicted_BTC,
        target_BTC=target_BTC,
        features_BTC=features_BTC,
        context_BKC=_norm(seen_BKC) if name == "vjepa" else seen_BKC,
        pooled_BC=pooled_BC,
    )


def _encode_goal(networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What is predicted of every token, the target's output, both `[B, N, C]`, and `Outcome.pooled_BC`."""
    with _mean_of_blocks(networks) as mean:
        features_BNC = encode_target(networks, batch.target_BDHW, batch.content_BN, batch.spacing_B3)
    normed_BNC = _norm(features_BNC)
    output_BNC = normed_BNC if networks.objective.name == "vjepa" else features_BNC
    return mean[0] if mean else output_BNC, output_BNC, pool_content(normed_BNC, batch.content_BN)


@contextmanager
def _mean_of_blocks(networks: Networks) -> Iterator[list[Tensor]]:
    """Where all blocks are to be predicted, the mean of their layer-normed tokens is in the list afterwards."""
    mean: list[Tensor] = []
    blocks = networks.target.blocks

    def add(x_BNC: Tensor) -> None:
        part_BNC = _norm(x_BNC.float()) / len(blocks)
        mean[:] = [mean[0] + part_BNC] if mean else [part_BNC]

    blocks.look = add if networks.objective.target_blocks == "all" else None
    try:
        yield mean
    finally:
        blocks.look = None


def encode_target(networks: Networks, x_BDHW: Tensor, content_BN: Tensor, spacing_B3: Tensor) -> Tensor:
    """The target's features of every token, float32 `[B, N, C]`."""
    features_BNC: Tensor = networks.target(x_BDHW, content_BN, spacing_B3).float()
    return features_BNC


def pooled_target(networks: Networks, x_BDHW: Tensor, content_BN: Tensor, spacing_B3: Tensor) -> Tensor:
    """`Outcome.pooled_BC` of volumes of which nothing is predicted."""
    return pool_content(_norm(encode_target(networks, x_BDHW, content_BN, spacing_B3)), content_BN)


def _norm(x_BNC: Tensor) -> Tensor:
    return functional.layer_norm(x_BNC, x_BNC.shape[-1:])


def predict(networks: Networks, batch: Batch) -> Tensor:
    """The predicted features at the targets, `[B, T, C]`, from the context view alone."""
    return _predict_from_context(networks, batch)[0]


def _predict_from_context(networks: Networks, batch: Batch, *, everywhere: bool = False) -> tuple[Tensor, Tensor]:
    """Predictions, of the visible tokens first if `everywhere`, and the context's features of those, `[B, K, C]`."""
    if isinstance(networks.predictor, TransformerPredictor):
        return _predict_from_visible(networks.context, networks.predictor, batch, everywhere=everywhere)
    tokens_BNC = networks.context(
        batch.context_BDHW, batch.content_BN, batch.spacing_B3, hide_BN=batch.hidden_BN, scale_BL2=batch.scale_BL2
    )
    predicted: Tensor = networks.predictor(take_tokens(tokens_BNC, batch.targets_BT))
    return predicted, take_tokens(tokens_BNC.detach(), batch.visible_BK)


def _predict_from_visible(
    context: Encoder, predictor: TransformerPredictor, batch: Batch, *, everywhere: bool
) -> tuple[Tensor, Tensor]:
    """`vjepa`: only visible tokens enter the context encoder; all are content, so nothing needs a mask."""
    tokens_BKC: Tensor = context(
        batch.context_BDHW, None, batch.spacing_B3, keep_BK=batch.visible_BK, scale_BL2=batch.scale_BL2
    )
    index_BM = torch.cat([batch.visible_BK, batch.targets_BT], dim=1)
    rotation: Rotation = context.rotation(batch.spacing_B3, index_BM, device=index_BM.device)
    predicted: Tensor = predictor(tokens_BKC, rotation, everywhere=everywhere)
    return predicted, tokens_BKC


def compare(objective: ObjectiveName, predicted_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """The loss of predictions against targets.

    `vjepa` (Assran et al. 2025, section 2.1): L1 against the target's, layer-normed. `methods`: mean squared error of
    L2-normalised features, a mean over channels too, so two unrelated vectors score 2 / C: read the cosine beside it.
    """
    if objective == "vjepa":
        return functional.l1_loss(predicted_BTC, target_BTC)
    return functional.mse_loss(functional.normalize(predicted_BTC, dim=-1), functional.normalize(target_BTC, dim=-1))


def pool_content(x_BNC: Tensor, content_BN: Tensor) -> Tensor:
    """Mean over content tokens, `[B, C]`."""
    weight_BN1 = content_BN[:, :, None].to(x_BNC.dtype)
    return (x_BNC * weight_BN1).sum(1) / weight_BN1.sum(1).clamp_min(1)
