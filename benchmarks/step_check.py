"""Whether a step computes what it should: its loss and gradients against float32, eager, with attention written out.

Shapes: W weights.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from train.device import Device
from train.encoder import Blocks
from train.objective import Batch, Networks, build_networks, evaluate
from train.step import start_state

# How much may differ: the loss and the norm of its gradient, relatively; the direction of the gradient, as a cosine.
# Measured on CPUs, `vjepa` and `methods` of several sizes: up to 1.2e-3, 5e-3 and 1 - 2e-3 in bfloat16, 1e-7, 4e-5 and
# 1 - 3e-8 in float32. Heads of half the width, an error that changes little at initial weights: a cosine of 1 - 9e-3.
BOUNDS = {"bf16": (0.01, 0.02, 0.995), "fp32": (1e-4, 1e-3, 0.9999)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found, and whether it is within the bounds."""

    loss: float
    loss_fp32: float
    grad_norm: float
    grad_norm_fp32: float
    gradient_cosine: float
    passed: bool


def check_step(recipe: Any, device: Device, batch: Batch) -> dict[str, Any]:
    """One forward and backward pass, as the device does them and in float32, of the same weights and batch.

    In float32 attention is written out and blocks are computed twice, which needs less memory and changes no gradient.
    """
    loss, gradient_W = gradients(start_state(recipe, device).networks, batch, device)
    plain = build_networks(recipe).to(device.torch_device).train()
    for module in plain.modules():
        if isinstance(module, Blocks):
            module.recompute = True
    with sdpa_kernel(SDPBackend.MATH):
        exact, exact_W = gradients(plain, batch, None)
    return asdict(compare((loss, gradient_W), (exact, exact_W), BOUNDS[device.precision]))


def gradients(networks: Networks, batch: Batch, device: Device | None) -> tuple[float, Tensor]:
    """The loss and the gradient of all that is learned, in float64; in float32 without a device."""
    if device is None:
        outcome = evaluate(networks, batch)
    else:
        with device.autocast():
            outcome = evaluate(networks, batch)
    torch.autograd.backward(outcome.total_loss)
    parts = [one.grad.double().flatten() for one in networks.learned_parameters() if one.grad is not None]
    return outcome.total_loss.item(), torch.cat(parts)


def compare(found: tuple[float, Tensor], exact: tuple[float, Tensor], bounds: tuple[float, float, float]) -> Check:
    """Losses and gradients side by side."""
    norm, exact_norm = (float(torch.linalg.vector_norm(gradient_W)) for _, gradient_W in (found, exact))
    cosine = float(torch.nn.functional.cosine_similarity(found[1], exact[1], dim=0))
    apart = (abs(found[0] - exact[0]) / abs(exact[0]), abs(norm - exact_norm) / exact_norm)
    return Check(
        loss=found[0],
        loss_fp32=exact[0],
        grad_norm=norm,
        grad_norm_fp32=exact_norm,
        gradient_cosine=cosine,
        passed=apart[0] <= bounds[0] and apart[1] <= bounds[1] and cosine >= bounds[2],  # nan: not passed
    )
