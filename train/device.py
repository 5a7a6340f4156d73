"""What differs between a CPU, a CUDA device and an XLA device; the only module that knows torch_xla."""

import importlib
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Literal

import torch
from torch import Tensor

from train.errors import DeviceError, MemoryTooSmallError
from train.ranks import Ranks

Precision = Literal["auto", "fp32", "bf16"]
DEVICE_NAMES: Final = ("auto", "cpu", "cuda", "xla")


BF16_PEAKS: Final = {
    "H200 NVL": 835e12, "H200": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
}  # fmt: skip
"""NVIDIA's data sheets, without sparsity; the first that is part of a device's name. They are of whole devices."""


REFUSALS: Final = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What a plain RuntimeError says of memory: of torch's CPU allocator, under `ulimit -v` or where memory is not
overcommitted, and of what allocates on a CUDA device by itself (pytorch#128601: cuBLAS, new in a backward pass)."""


class Device:
    """A CPU or a CUDA device. `precision` is that of matrix products; weights are always float32."""

    def __init__(
        self, torch_device: torch.device, precision: Precision, *, native_bf16: bool, ranks: Ranks | None = None
    ) -> None:
        self.torch_device = torch_device
        self.ranks = ranks or Ranks()
        self.precision = ("bf16" if native_bf16 else "fp32") if precision == "auto" else precision

    @contextmanager
    def telling_memory(self) -> Iterator[None]:
        """Where memory is too small for the block, one error for what torch and Python raise on each kind of device.

        Raises:
            MemoryTooSmallError: in its place.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            is_refused = any(words in str(error) for words in REFUSALS)
            if not (is_refused or isinstance(error, torch.OutOfMemoryError | MemoryError)):
                raise
            raise MemoryTooSmallError(" ".join(str(error).split())[:200] or type(error).__name__) from error

    def free_memory(self) -> None:
        """Give cached blocks back, which were cut for another size."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    @property
    def kind(self) -> str:
        return self.torch_device.type

    @property
    def is_lazy(self) -> bool:
        """Work is recorded and compiled: a number that changes must be a tensor, or it is compiled anew."""
        return False

    @property
    def parts(self) -> int:
        """Into how many parts this one process cuts a micro-batch."""
        return 1

    def spread(self, x: Tensor) -> Tensor:
        """Cut a tensor of a batch by its first axis over the parts."""
        return x

    @property
    def peak_flops(self) -> float | None:
        """Dense operations a second by the maker's sheet, in this precision; None where no sheet is known here."""
        if self.kind != "cuda" or self.precision != "bf16":
            return None
        return bf16_peak(torch.cuda.get_device_name(self.torch_device))

    def autocast(self) -> AbstractContextManager[Any]:
        """Runs matrix products in bfloat16 if the precision says so."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.kind, dtype=torch.bfloat16)

    def normal(self, shape: Sequence[int], seed: int) -> Tensor:
        """Standard normal numbers that depend on the seed alone, for one kind of device."""
        generator = torch.Generator(self.torch_device).manual_seed(seed)
        return torch.randn(tuple(shape), generator=generator, device=self.torch_device)

    def send_off(self) -> None:
        """Where work is recorded lazily, all that is recorded is done here: each time the same graph, compiled once."""

    def peak_memory_bytes(self) -> int:
        """The most memory used so far: of the device, or of the process on a CPU."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated(self.torch_device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def bf16_peak(name: str) -> float | None:
    """Of a device of that name; None of a part of one (MIG) and of those that are not known here."""
    return next((peak for part, peak in BF16_PEAKS.items() if part in name and "MIG" not in name), None)


def send(x: Tensor, to: torch.device) -> Tensor:
    """A tensor of the host on a device; a GPU fetches it while the host goes on."""
    if to.type != "cuda":
        return x.to(to)
    return x.pin_memory().to(to, non_blocking=True)  # the allocator of pinned memory waits until it has been read


class XlaDevice(Device):
    """A TPU core, or torch_xla's CPU; several are one program (SPMD) over parts of each batch.

    Weights are on all of them, and the compiler sums gradients (https://docs.pytorch.org/xla, "SPMD user guide").
    """

    def __init__(self, torch_xla: Any, precision: Precision, spmd: Any = None, parts: int = 1) -> None:
        super().__init__(torch_xla.device(), precision, native_bf16=True)
        self._torch_xla, self._spmd, self._parts = torch_xla, spmd, parts
        self._mesh = spmd.Mesh(list(range(parts)), (parts,), ("batch",)) if parts > 1 else None

    @property
    def is_lazy(self) -> bool:
        return True

    @property
    def parts(self) -> int:
        return self._parts

    def spread(self, x: Tensor) -> Tensor:
        if self._mesh is not None and len(x) % self._parts == 0:
            self._spmd.mark_sharding(x, self._mesh, ("batch", *[None] * (x.ndim - 1)))
        return x

    def normal(self, shape: Sequence[int], seed: int) -> Tensor:
        """Drawn on the host: XLA has no generators, and a seed of its own would be part of the graph."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(self.torch_device)

    def send_off(self) -> None:
        self._torch_xla.sync()


def open_device(name: str = "auto", precision: Precision = "auto") -> Device:
    """The device that a recipe names.

    Raises:
        DeviceError: if it is not known or not there, or if torchrun started several processes for a device that has
            no ranks yet.
    """
    if name not in DEVICE_NAMES:
        raise DeviceError(f"there is no device {name!r}: choose from {', '.join(DEVICE_NAMES)}.")
    ranks = Ranks.from_environment()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return _open_cuda(precision, ranks)
    if name == "xla":
        return _open_xla(precision, ranks)
    ranks.join("gloo")
    return Device(torch.device("cpu"), precision, native_bf16=_cpu_multiplies_bf16(), ranks=ranks)


def _open_cuda(precision: Precision, ranks: Ranks) -> Device:
    if not torch.cuda.is_available():
        raise DeviceError("train.device is cuda, and torch sees no CUDA device: use cpu, or install a CUDA build.")
    place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= there:
        raise DeviceError(
            f"this is process {place} of its machine, from 0, and torch sees {there} CUDA devices: start one process "
            "for each (torchrun --nproc-per-node), and let each see all of them."
        )
    torch_device = torch.device("cuda", place)
    torch.cuda.set_device(torch_device)
    ranks.join("nccl")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(torch_device, precision, native_bf16=native, ranks=ranks)


def _open_xla(precision: Precision, ranks: Ranks) -> Device:
    if not ranks.is_alone:
        raise DeviceError("all XLA devices of a machine are one process's: start it without torchrun.")
    names = ("torch_xla", "torch_xla.runtime", "torch_xla.distributed.spmd")
    try:
        torch_xla, runtime, spmd = (importlib.import_module(name) for name in names)
    except ImportError as error:
        raise DeviceError(
            "train.device is xla, and torch_xla is not installed: pip install 'fovea-oct[tpu]'."
        ) from error
    if runtime.process_count() > 1:
        raise DeviceError("this version trains on the XLA devices of one machine, and this is one of several.")
    parts = int(runtime.addressable_runtime_device_count())
    if parts > 1:
        runtime.use_spmd()
    return XlaDevice(torch_xla, precision, spmd, parts)


def _cpu_multiplies_bf16() -> bool:
    """Only with AMX, which multiplies 5 times as fast.

    With AVX-512's instructions alone a step was faster on one processor and slower on another (docs/training.md).
    """
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16"))
