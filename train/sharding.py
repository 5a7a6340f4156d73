"""Weights, gradients, moments and the target cut over ranks: torch's FSDP2 (`fully_shard`), PyTorch documentation.

A sharded tensor is a DTensor, cut by its first axis. Whatever is not a step (validation, probes, pictures, rows,
checkpoints) sees whole tensors, gathered one after another, and so is what it is without sharding. To gather, every
rank must come here as often and in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from train.device import Device
from train.encoder import Block
from train.errors import DeviceError
from train.objective import Networks

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import Recipe


def is_sharded(recipe: Recipe, device: Device) -> bool:
    """Whether the recipe asks for it, and there is more than one rank."""
    return bool(recipe.train.shard) and not device.ranks.is_alone


def check_sharding(recipe: Recipe, device: Device) -> None:
    """Whether a run can be sharded as its recipe asks.

    Every rank must come to every sum, so each makes as many micro-batches: its part of a batch is that of any other.

    Raises:
        DeviceError: if it cannot.
    """
    if not recipe.train.shard:
        return
    batch, world = recipe.train.global_batch, device.ranks.world_size
    if device.is_lazy:
        raise DeviceError("train.shard is true, and XLA devices each hold all weights here: set train.shard=false.")
    if recipe.train.compile:
        raise DeviceError("train.shard and train.compile are true, and were not tried together: set one to false.")
    if batch % world:
        raise DeviceError(
            f"train.shard needs as many volumes on each rank, and a train.global_batch of {batch} does not divide by "
            f"{world} ranks: set it to a multiple of {world}, or start another number of ranks."
        )


def shard(networks: Networks, device: Device) -> None:
    """Cut the weights of each block, and then what else each of the three networks has, over all ranks; in place.

    They are gathered while a block needs them. Gradients are sums over ranks, as ours are scaled for sums.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - a second, for those who shard
    from torch.distributed.fsdp import FSDPModule, fully_shard  # noqa: PLC0415

    # What a network returns is a view, and nothing here writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(device.kind, (device.ranks.world_size,))
    for root in (networks.context, networks.predictor, networks.target):
        blocks = [child for child in root.modules() if isinstance(child, Block)]
        parts: list[nn.Module] = [*blocks, root]
        for module in parts:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)  # also roots: the target has no backward pass
    for module in networks.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank, if it is cut; else itself."""
    if not _is_cut(tensor):
        return tensor
    cut: Any = tensor
    full: Tensor = cut.full_tensor()
    return full


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank has: the same memory."""
    if not _is_cut(tensor):
        return tensor
    cut: Any = tensor
    ours: Tensor = cut.to_local()
    return ours


def cut_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Our part of a whole tensor that every rank has, in memory of its own, if `like` is cut; else itself.

    Raises:
        RuntimeError: if it is of another shape.
    """
    if like is None or not _is_cut(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415

    if tensor.shape != like.shape:
        raise RuntimeError(f"a shape of {tuple(tensor.shape)}, where {tuple(like.shape)} is wanted")
    cut: Any = like
    return distribute_tensor(tensor, cut.device_mesh, cut.placements, src_data_rank=None).clone()


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, whether the module is cut or not.

    Raises:
        RuntimeError: if names or shapes are not those of the module.
    """
    there = module.state_dict()
    module.load_state_dict({name: cut_like(tensor, there.get(name)) for name, tensor in tensors.items()})


@torch.no_grad()
def whole_networks(networks: Networks, recipe: Recipe) -> Networks:
    """Networks that one rank can ask alone: themselves, or a copy of whole weights, as they are now."""
    if not any(_is_cut(parameter) for parameter in networks.parameters()):
        return networks
    with torch.device("meta"):  # no memory, and no initial weights
        copy = Networks(recipe)
    copy.load_state_dict({name: whole(tensor) for name, tensor in networks.state_dict().items()}, assign=True)
    return copy


def clip(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm over all of them, on every rank; the norm before that."""
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(_is_cut(parameter) for parameter in moved):
        return float(torch.nn.utils.clip_grad_norm_(moved, limit))
    norm = whole(torch.nn.utils.get_total_norm([one.grad for one in moved if one.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(moved, limit, norm)
    return float(norm)


def _is_cut(tensor: Tensor) -> bool:
    """Whether it is a DTensor: its class takes a second to import."""
    return hasattr(tensor, "full_tensor")
