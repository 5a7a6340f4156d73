"""A step of V-JEPA 2 with the modules of its own repository (facebookresearch/vjepa2), at the sizes of a recipe.

Nothing of that repository is here: its checkout is given by path. The order of a step is that of its
`app/vjepa/train.py` and `app/vjepa/utils.py`, with one set of masks, and without the scaling of losses, which bfloat16
does not need. Shapes: B volumes, D H W voxels, N tokens, K visible ones, T targets, C channels.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.device import Device
from train.encoder import num_parameters
from train.errors import RecipeError
from train.objective import Batch
from train.presets import dimensions
from train.step import TrainState

UNUSED = {"timm.models.layers": "drop_path", "einops": "rearrange"}  # stochastic depth, at a rate of 0; nothing


class ReferenceStep:
    """Their context encoder, predictor and target encoder, and an update of all three."""

    def __init__(self, checkout: str, recipe: Any, device: Device) -> None:
        """Import from the checkout, and build on the device."""
        check_sizes(recipe)
        self._recipe, self._device = recipe, device
        self._apply_masks, encoder, predictor = load_modules(checkout)
        size, common = dimensions(recipe.model), _common(recipe)
        heads, inner_heads = (width // recipe.model.head_dim for width in (size.dim, size.predictor_dim))
        sizes = {"embed_dim": size.dim, "depth": size.depth, "num_heads": heads, "in_chans": 1}
        self.context = encoder(**sizes, **common).to(device.torch_device)
        self.target = encoder(**sizes, **common).to(device.torch_device).requires_grad_(False)
        self.target.load_state_dict(self.context.state_dict())
        self.predictor = predictor(
            embed_dim=size.dim,
            predictor_embed_dim=size.predictor_dim,
            depth=size.predictor_depth,
            num_heads=inner_heads,
            use_mask_tokens=True,
            num_mask_tokens=1,
            **common,
        ).to(device.torch_device)
        if recipe.train.compile:  # whole, as they do it
            for network in (self.context, self.target, self.predictor):
                network.compile()
        self._optimizer = _optimizer([self.context, self.predictor], recipe)

    def step(self, batches: Sequence[Batch]) -> float:
        """One update; the loss, mean over volumes."""
        losses = []
        for batch in batches:
            share = len(batch.content_BN) / self._recipe.train.global_batch
            with self._device.autocast():
                loss = self._loss(batch)
            torch.autograd.backward(loss * share)
            losses.append(loss.detach() * share)
        self._optimizer.step()
        self._optimizer.zero_grad()
        momentum = self._recipe.optim.ema_start
        with torch.no_grad():
            moved, by = list(self.target.parameters()), list(self.context.parameters())
            torch._foreach_mul_(moved, momentum)
            torch._foreach_add_(moved, by, alpha=1 - momentum)
        return float(torch.stack(losses).sum())  # one wait for the device, as in ours

    def _loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            features_BNC = self.target(batch.target_BDHW[:, None])
            features_BNC = functional.layer_norm(features_BNC, (features_BNC.size(-1),))
        tokens_BKC = self.context(batch.context_BDHW[:, None], [batch.visible_BK])
        predicted_BTC = self.predictor(tokens_BKC, [batch.visible_BK], [batch.targets_BT])
        target_BTC = self._apply_masks(features_BNC, [batch.targets_BT])
        return torch.mean(torch.abs(predicted_BTC - target_BTC))


def load_modules(checkout: str) -> tuple[Callable[..., Tensor], type[nn.Module], type[nn.Module]]:
    """Their gather of tokens, encoder and predictor.

    Raises:
        RecipeError: if the path holds no checkout.
    """
    if not (Path(checkout) / "src/models/vision_transformer.py").is_file():
        raise RecipeError(f"{checkout} is no checkout of facebookresearch/vjepa2: it has no src/models.")
    if checkout not in sys.path:
        sys.path.append(checkout)
    for module, function in UNUSED.items():
        _stand_in(module, function)
    # They wrap attention in it with all kernels allowed, as they are anyway; torch.compile breaks a graph at each.
    torch.backends.cuda.sdp_kernel = nullcontext  # type: ignore[assignment]
    from src.masks.utils import apply_masks
    from src.models.predictor import VisionTransformerPredictor
    from src.models.vision_transformer import VisionTransformer

    return apply_masks, VisionTransformer, VisionTransformerPredictor


def check_sizes(recipe: Any) -> None:
    """Whether their modules can be built at these sizes.

    Raises:
        RecipeError: if not.
    """
    (_, height, width), (_, tokens_h, tokens_w) = recipe.model.patch, recipe.token_grid
    if recipe.objective.name != "vjepa" or height != width or tokens_h != tokens_w:
        raise RecipeError(
            "the reference has the objective `vjepa`, and patches and token grids of one height and width."
        )
    if recipe.objective.context_weight or recipe.objective.target_blocks != "last":
        raise RecipeError(
            "the reference predicts the last block at the targets alone: add --set objective.context_weight=0 --set "
            "objective.target_blocks=last."
        )


def check_equal(reference: ReferenceStep, state: TrainState) -> None:
    """Whether both have as many parameters: ours has a mask token more, in the encoder, that only `methods` uses.

    Raises:
        RecipeError: if they are not of one size.
    """
    ours, theirs = state.networks, reference
    encoders = num_parameters(ours.context) - ours.context.dim, num_parameters(theirs.context)
    predictors = num_parameters(ours.predictor), num_parameters(theirs.predictor)
    if encoders[0] != encoders[1] or predictors[0] != predictors[1]:
        raise RecipeError(
            f"ours and the reference differ in size: encoders {encoders}, predictors {predictors}: "
            "take a recipe with rotary positions, and their main branch of August 2025."
        )


def _common(recipe: Any) -> dict[str, Any]:
    depth, height, width = (size // recipe.data.pool for size in recipe.grid)
    return {
        "img_size": (height, width),
        "num_frames": depth,
        "patch_size": recipe.model.patch[1],
        "tubelet_size": recipe.model.patch[0],
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "use_rope": True,
        "use_sdpa": True,
        "use_activation_checkpointing": recipe.train.recompute,
    }


def _optimizer(networks: Sequence[nn.Module], recipe: Any) -> torch.optim.AdamW:
    """Theirs: matrices decay, biases and vectors do not."""
    named = [pair for network in networks for pair in network.named_parameters()]
    vectors = [one for name, one in named if "bias" in name or one.ndim == 1]
    matrices = [one for name, one in named if "bias" not in name and one.ndim != 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.optim.lr, betas=tuple(recipe.optim.betas))


def _stand_in(module: str, function: str) -> None:
    """A function that they import and that no step at these settings calls, if its package is not installed."""
    if module in sys.modules or importlib.util.find_spec(module.partition(".")[0]) is not None:
        return
    names = [module[:end] for end, letter in enumerate(module) if letter == "."]
    for name in (*names, module):
        sys.modules[name] = ModuleType(name)

    def missing(*_: Any) -> Tensor:
        raise RecipeError(f"the reference called {module}.{function}, which is not installed.")

    setattr(sys.modules[module], function, missing)
