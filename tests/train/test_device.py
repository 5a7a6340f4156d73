"""Devices: what is asked for and not there is one sentence; precision is what the hardware multiplies."""

from collections.abc import Callable

import pytest
import torch

from train.device import XlaDevice, bf16_peak, open_device, send
from train.errors import DeviceError, MemoryTooSmallError


def test_auto_on_a_machine_without_cuda_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device("auto").kind == "cpu"
    with pytest.raises(DeviceError, match="no CUDA device"):
        open_device("cuda")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Torch's own answer counts emulation: a T4 has nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert open_device("cuda").precision == ("bf16" if native else "fp32")


def test_torch_xla_is_asked_for_only_when_the_recipe_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_xla", None)
    with pytest.raises(DeviceError, match="torch_xla is not installed"):
        open_device("xla")
    assert open_device("cpu").kind == "cpu"


def test_ranks_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("2", "-1", "first"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(DeviceError, match=f"RANK={rank} with WORLD_SIZE=2 does not exist"):
            open_device("cpu")


def refuse_an_exabyte() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def refuse_on_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def refuse_a_library() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def refuse_a_context() -> None:
    raise torch.AcceleratorError("CUDA error: out of memory")


def refuse_in_python() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (refuse_an_exabyte, r"can't allocate memory: you tried to allocate 1152921504606846976 bytes"),
        (refuse_on_cuda, r"^CUDA out of memory"),
        (refuse_a_library, "CUBLAS_STATUS_ALLOC_FAILED"),
        (refuse_a_context, "^CUDA error: out of memory"),
        (refuse_in_python, "^MemoryError$"),
    ],
)
def test_memory_that_is_too_small_is_one_error(ask: Callable[[], None], said: str) -> None:
    with pytest.raises(MemoryTooSmallError, match=said), open_device("cpu").telling_memory():
        ask()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_peak_is_that_of_the_whole_device(name: str, peak: float | None) -> None:
    assert bf16_peak(name) == peak


@pytest.mark.parametrize("name", ["gpu", "cuda:0", ""])
def test_a_device_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"no device '{name}': choose from auto, cpu, cuda, xla"):
        open_device(name)


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(DeviceError, match="process 1 of its machine, from 0, and torch sees 1 CUDA devices"):
        open_device("cuda")


def test_a_gpu_fetches_from_pinned_memory_while_the_host_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: what is asked for is looked at, and that of a CPU nothing is."""
    asked: list[object] = []
    pinned = torch.zeros(1)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *words, **named: asked.append((x is pinned, words, named)))
    send(torch.ones(1), torch.device("cpu"))
    send(torch.ones(1), torch.device("cuda", 0))
    to_cpu, to_gpu = (False, (torch.device("cpu"),), {}), (True, (torch.device("cuda", 0),), {"non_blocking": True})
    assert asked == [to_cpu, to_gpu]


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size of tensor a"), open_device("cpu").telling_memory():
        torch.ones(2) + torch.ones(3)


@pytest.mark.parametrize(
    ("capability", "expected"), [("amx_bf16", "bf16"), ("avx512_bf16", "fp32"), ("avx512_f", "fp32")]
)
def test_a_cpu_uses_bf16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, capability: str, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    assert open_device("cpu", "auto").precision == expected
    assert open_device("cpu", "fp32").precision == "fp32"


def test_bf16_multiplies_in_bf16_and_keeps_weights_in_float32() -> None:
    device = open_device("cpu", "bf16")
    layer = torch.nn.Linear(4, 4)
    with device.autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert device.peak_memory_bytes() > 2**20


def test_the_xla_device_sends_off_each_step() -> None:
    class FakeXla:
        calls: tuple[str, ...] = ()

        def device(self) -> torch.device:
            return torch.device("cpu")

        def sync(self) -> None:
            self.calls += ("sync",)

    fake = FakeXla()
    device = XlaDevice(fake, "auto")
    device.send_off()
    assert (fake.calls, device.precision) == (("sync",), "bf16")
    assert torch.equal(device.normal((2, 3), 7), open_device("cpu").normal((2, 3), 7))
