"""What differs between a CPU, a CUDA device and an XLA device; the only module that knows torch_xla."""

import importlib
import os
import resource
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from train.errors import DeviceError
from train.ranks import Ranks

Precision = Literal["auto", "fp32", "bf16"]


class Device:
    """A CPU or a CUDA device. `precision` is that of matrix products; weights are always float32."""

    def __init__(
        self, torch_device: torch.device, precision: Precision, *, native_bf16: bool, ranks: Ranks | None = None
    ) -> None:
        self.torch_device = torch_device
        self.ranks = ranks or Ranks()
        self.precision = ("bf16" if native_bf16 else "fp32") if precision == "auto" else precision

    @property
    def out_of_memory(self) -> tuple[type[BaseException], ...]:
        """What is raised when memory is too small."""
        return torch.OutOfMemoryError, MemoryError

    def free_memory(self) -> None:
        """Give cached blocks back, which were cut for another size."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    @property
    def kind(self) -> str:
        return self.torch_device.type

    def autocast(self) -> AbstractContextManager[Any]:
        """Runs matrix products in bfloat16 if the precision says so."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.kind, dtype=torch.bfloat16)

    def normal(self, shape: Sequence[int], seed: int) -> Tensor:
        """Standard normal numbers that depend on the seed alone, for one kind of device."""
        generator = torch.Generator(self.torch_device).manual_seed(seed)
        return torch.randn(tuple(shape), generator=generator, device=self.torch_device)

    def end_step(self) -> None:
        """Called after each update: where work is recorded lazily, it is sent off here."""

    def peak_memory_bytes(self) -> int:
        """The most memory used so far: of the device, or of the process on a CPU."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated(self.torch_device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


class XlaDevice(Device):
    """A TPU core, or torch_xla's CPU."""

    def __init__(self, torch_xla: Any, precision: Precision) -> None:
        super().__init__(torch_xla.device(), precision, native_bf16=True)
        self._torch_xla = torch_xla

    def normal(self, shape: Sequence[int], seed: int) -> Tensor:
        """Drawn on the host: XLA has no generators, and a seed of its own would be part of the graph."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(self.torch_device)

    def end_step(self) -> None:
        self._torch_xla.sync()


def open_device(name: str = "auto", precision: Precision = "auto") -> Device:
    """The device that a recipe names.

    Raises:
        DeviceError: if it is not there, or if torchrun started several processes for a device that has no ranks yet.
    """
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
    torch_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(torch_device)
    ranks.join("nccl")
    return Device(torch_device, precision, native_bf16=torch.cuda.is_bf16_supported(), ranks=ranks)


def _open_xla(precision: Precision, ranks: Ranks) -> Device:
    if not ranks.is_alone:
        raise DeviceError("this version trains on one XLA device: start it without torchrun, or with one process.")
    try:
        return XlaDevice(importlib.import_module("torch_xla"), precision)
    except ImportError as error:
        raise DeviceError(
            "train.device is xla, and torch_xla is not installed: pip install 'fovea-oct[tpu]'."
        ) from error


def _cpu_multiplies_bf16() -> bool:
    """Only AMX makes bfloat16 faster than float32 on a CPU (5 times); AVX-512 alone makes it slower."""
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16", False))
