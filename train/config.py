"""A recipe: every choice of a training run, with the reason beside each default."""

import hashlib
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shards.schema import GRID_SHAPE, PATCH_SHAPE, Device, Shape, token_grid

ObjectiveName = Literal["vjepa", "methods"]
Preset = Literal["tiny", "small", "base", "large"]


def _number(value: Any) -> Any:
    """To pydantic true is 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")  # noqa: TRY004 - pydantic tells of ValueErrors
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Count = Annotated[Whole, Field(ge=1, le=2**53)]
Several = Annotated[Whole, Field(ge=2, le=2**31)]  # one token has no spread, and BatchNorm refuses it
Size = Annotated[Whole, Field(ge=0, le=2**31)]
Few = Annotated[Whole, Field(ge=0, le=1000)]
Edge = Annotated[Whole, Field(ge=1, le=2**16)]  # voxels along an axis, or channels
Layers = Annotated[Few, Field(ge=1)]
Batch = Annotated[Whole, Field(ge=1, le=2**20)]
Positive = Annotated[Real, Field(gt=0, le=1e30)]  # float32 holds it
NonNegative = Annotated[Real, Field(ge=0, le=1e3)]
Decay = Annotated[Real, Field(ge=0, lt=1)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Aspect = Annotated[Real, Field(ge=0.01, le=100)]
Millimetres = Annotated[Real, Field(ge=1e-4, le=1e3)]


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first number is above the second")
    return bounds


STORES = ("gs://", "gcs://", "s3://", "s3a://", "file://")


def _of_a_store(address: str) -> str:
    if "://" in address and not address.startswith(STORES):
        raise ValueError(f"{address} is in no store that is known here: gs://, s3://, or a folder")
    return address


Address = Annotated[str, AfterValidator(_of_a_store)]
Range = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]


class Section(BaseModel):
    """Base of a recipe's sections: an unknown key is an error, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which volumes are read, and at what resolution."""

    pool: Edge = 1  # 1 trains on the stored grid; 2 averages 2x2x2 voxels, an eighth of the tokens
    grid: tuple[Edge, Edge, Edge] | None = None  # voxels [D, H, W] of the stored volumes; read from the dataset
    geometry: str | None = None  # name of their geometry; read from the dataset
    devices: tuple[Device, ...] | None = None  # None: all
    protocols: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    workers: Few = 0  # reader processes; 0 reads in the loop, enough while a step takes longer than a read


class ModelConfig(Section):
    """The size and shape of the encoder and of its predictor; None takes the preset's value."""

    preset: Preset = "base"
    patch: tuple[Edge, Edge, Edge] = PATCH_SHAPE  # the schema's content tokens count these
    dim: Edge | None = None
    depth: Layers | None = None
    head_dim: Annotated[Edge, Field(ge=6)] = 64  # flash kernels are fastest at 64; RoPE needs 6 for its three axes
    predictor_dim: Edge | None = None
    predictor_depth: Layers | None = None
    drop_path: Decay = 0.0
    # Stochastic depth (Huang et al. 2016): the chance that a volume skips a part of the last block of the context
    # encoder; it rises linearly from 0 at the first. What is left is scaled up.
    positions: Literal["rope", "table"] | None = None  # None: rope for vjepa, table for methods
    rope_reference_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    # Voxel spacing that counts as one grid step for RoPE. None: positions are grid indices. The trainer sets
    # it to the dataset's median spacing when spacing differs between volumes, so that equal distances in mm
    # turn the features by equal angles.


class MaskConfig(Section):
    """How masked regions are drawn; the number of tokens is the objective's."""

    tube_share: Fraction = 0.5  # share of blocks that run along the whole of D; the rest are limited in D
    tube_area: Range = (0.1, 0.3)  # share of the H x W plane that one tube covers
    block_area: Range = (0.15, 0.5)  # the same for a block that is limited in D
    block_extent: Range = (0.25, 0.6)  # share of D that such a block spans
    aspect: Annotated[tuple[Aspect, Aspect], AfterValidator(_rising)] = (0.5, 2.0)  # H over W of a block, in tokens
    ratio: Annotated[Real, Field(gt=0, lt=1)] = 0.6  # `methods`: share of content tokens masked at random


class ObjectiveConfig(Section):
    """What is predicted, and from how many tokens. Budgets count content tokens and never vary."""

    name: ObjectiveName = "vjepa"
    num_visible: Several = 3072  # tokens of the context; a third of the full grid of 9216
    num_targets: Several = 1536  # masked tokens whose features are predicted
    context_weight: NonNegative = 0.0
    # `vjepa`: weight of the same loss at the visible tokens (V-JEPA 2.1, Mur-Labadia et al. 2026, L_ctx: 0.5). Without
    # it nothing asks of a visible token that it keeps what is at its place.
    target_blocks: Literal["last", "all"] = "last"
    # `vjepa`: what is predicted, the target's output (V-JEPA 2), or the mean over its blocks of each one's layer-normed
    # tokens (data2vec, Baevski et al. 2022): early blocks keep what the last lets go.

    @model_validator(mode="after")
    def _baseline_is_as_documented(self) -> Self:
        if self.name == "methods" and (self.context_weight or self.target_blocks != "last"):
            raise ValueError("context_weight and target_blocks are of vjepa: leave them out for methods")
        return self


class OptimConfig(Section):
    """AdamW, its schedule, and that of the target's momentum."""

    reference_batch: Batch | None = None
    # The global batch that `lr` and the momentum are for. With another, the rate goes with the square root of the ratio
    # (Adam: Malladi et al. 2022), and the momentum to its power (Busbridge et al. 2023). None: they are as they stand.
    lr: Positive = 1e-4  # methods text
    betas: tuple[Decay, Decay] = (0.9, 0.95)  # methods text
    weight_decay: NonNegative = 0.05  # methods text; on matrices only
    warmup_fraction: Fraction = 0.03  # methods text; of all steps
    final_lr_fraction: Fraction = 0.1  # methods text; the cosine ends at a tenth of the peak
    grad_clip: Positive = 1.0  # usual for ViTs; clips spikes, not ordinary steps
    ema_start: Fraction = 0.996  # methods text
    ema_end: Fraction = 1.0  # methods text


class AugmentConfig(Section):
    """Changes of a volume before it is used. Geometry is drawn once per volume, for both views.

    The one flip is along W: a right eye becomes a left one. Along D superior would become inferior, which no eye is.
    """

    shift_voxels: tuple[Size, Size, Size] = (0, 0, 0)  # greatest shift [D, H, W] of the stored grid
    mirror: Fraction = 0.0  # chance that an eye becomes the other eye
    scale: Annotated[Real, Field(ge=0, lt=0.5)] = 0.0  # D and W each magnified by 1 +- scale: eyes differ in length
    tilt_voxels: tuple[Size, Size] = (0, 0)  # greatest axial displacement at the first and last voxel of D and of W
    gain: Fraction = 0.0  # context view: contrast is multiplied by 1 +- gain
    offset: NonNegative = 0.0  # context view: brightness moves by up to this many standard deviations
    noise: NonNegative = 0.0  # context view: standard deviation of Gaussian noise


class TrainConfig(Section):
    """How long, how large, where."""

    max_steps: Count = 1000  # updates of the weights
    global_batch: Batch = 8  # volumes per update, whatever the micro-batch
    micro_batch: Batch = 8  # volumes at once; the rest of the batch is accumulated
    seed: Annotated[Whole, Field(ge=0)] = 0  # order, masks, augmentation, initial weights
    device: Literal["auto", "cpu", "cuda", "xla"] = "auto"  # auto: cuda if there is one, else cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device multiplies it natively
    recompute: bool = False  # activation checkpointing: a block's inside is computed twice and not kept
    compile: bool = False  # torch.compile of the blocks: pays on CUDA; half a minute or more at the start
    shard: bool = False  # several ranks: each holds a part of weights, gradients and moments (FSDP)
    max_nonfinite: Count = 5  # skipped updates in a row before the run fails

    @model_validator(mode="after")
    def _micro_fits(self) -> Self:
        if self.micro_batch > self.global_batch:
            raise ValueError(f"micro_batch {self.micro_batch} is greater than global_batch {self.global_batch}")
        return self


class ValidationConfig(Section):
    """How often the held-out volumes are scored, always at the first and the last step."""

    every_steps: Count = 500
    probe_volumes: Size = 256  # training volumes on which linear probes are fitted each time; 0 switches them off


class CheckpointConfig(Section):
    """How often a run can be resumed from, always at the last step."""

    every_steps: Count = 500
    keep: Count = 3  # the newest that stay; more than one, for the day when the newest does not load
    best: Literal["label", "device", "laterality", "none"] | None = None
    # The probe whose best checkpoint stays, too. None: that of the label if labels are given, else none.
    background: bool = True  # the loop waits while the state is copied in memory, and not for the disk
    copies: Address | None = None  # gs:// or s3:// URL, or a folder, of this run alone: checkpoints go there as well


class LogConfig(Section):
    """What a run tells."""

    every_steps: Count = 10
    images_every_steps: Count = 500
    wandb: bool = True  # offline unless WANDB_API_KEY is set
    artifacts: bool = False  # each checkpoint goes to W&B as well: gigabytes, for large models


class Recipe(Section):
    """A whole run. `recipe.yaml` in a run folder is one of these, resolved."""

    name: str
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    masks: MaskConfig = MaskConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _grid_is_whole_tokens(self) -> Self:
        for size, edge in zip(self.grid, self.model.patch, strict=True):
            if size % (edge * self.data.pool):
                raise ValueError(
                    f"an axis of {size} voxels is not a whole number of tokens of {edge} voxels at data.pool "
                    f"{self.data.pool}"
                )
        return self

    @property
    def grid(self) -> Shape:
        """Voxels `[D, H, W]` of the stored volumes."""
        return self.data.grid or GRID_SHAPE

    @property
    def token_grid(self) -> Shape:
        """Tokens `[D, H, W]` of a volume, after pooling."""
        return token_grid(self.grid, self.model.patch, self.data.pool)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.token_grid)

    def record(self) -> dict[str, Any]:
        """What checkpoints and W&B tell of it: not how and where saves are made, which is nobody else's."""
        return self.model_dump(mode="json", exclude={"checkpoint": {"background", "copies"}})

    def hash(self) -> str:
        """Sha256 of what is recorded: equal records, equal hash."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()
