"""What needs no gradients, in groups that fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import train.probe
import train.validation
from shards.schema import Sample
from train.device import Device
from train.errors import TrainError
from train.groups import by_groups
from train.objective import Batch, Networks, Outcome
from train.plan import Plan
from train.probe import encode
from train.step import start_state
from train.validation import validate


def test_groups_are_halved_once_and_for_all(plan: Plan, cpu: Device) -> None:
    tried: list[int] = []

    def work(samples: Sequence[Sample]) -> list[str]:
        tried.append(len(samples))
        if len(samples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [sample.key for sample in samples]

    rows = plan.train.samples[:11]
    found = by_groups(replace(plan.train, samples=rows), 8, cpu, work)
    assert [key for group in found for key in group] == [row.key for row in rows]
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert by_groups(replace(plan.train, samples=()), 8, cpu, work) == []


def test_one_volume_that_does_not_fit_is_said(plan: Plan, cpu: Device) -> None:
    def work(_samples: Sequence[Sample]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainError, match=r"one volume does not fit .*CUDA out of memory.* raise data.pool"):
        by_groups(plan.train, 4, cpu, work)


def test_a_validation_and_a_probe_survive_memory_that_is_too_small(
    plan: Plan, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come before the first step, which halves the micro-batch."""
    networks = start_state(plan.recipe, cpu).networks
    expected, pooled_VC = validate(networks, plan.val, plan.recipe, cpu)
    encoded_VC = encode(networks, plan.val, plan.recipe, cpu)
    real_evaluate, real_pooled = train.validation.evaluate, train.probe.pooled_target

    def evaluate(networks: Networks, batch: Batch) -> Outcome:
        if len(batch.content_BN) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real_evaluate(networks, batch)

    def pooled_target(networks: Networks, x_BDHW: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x_BDHW) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real_pooled(networks, x_BDHW, *rest)

    monkeypatch.setattr(train.validation, "evaluate", evaluate)
    monkeypatch.setattr(train.probe, "pooled_target", pooled_target)
    found, again_VC = validate(networks, plan.val, plan.recipe, cpu)
    exact = {"loss", "cosine", "rankme", "num_volumes", "content_tokens"}  # the others are of a whole batch
    assert {name: found[name] for name in exact} == pytest.approx({name: expected[name] for name in exact}, rel=1e-4)
    torch.testing.assert_close(again_VC, pooled_VC)
    torch.testing.assert_close(encode(networks, plan.val, plan.recipe, cpu), encoded_VC)
