"""Whole runs: the run folder, resuming, stopping, and failing."""

import json
import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.attempts
from shards.reader import open_dataset
from shards.schema import Sample
from tests.train.conftest import OBJECTIVES
from train.config import Recipe
from train.errors import CheckpointError, NonFiniteError, RunFolderError, TrainError, TrainingStoppedError
from train.loop import pretrain
from train.recipe import load_recipe
from train.recorder import Listener

TRAIN_KEYS = {
    "split", "step", "samples", "loss", "cosine", "lr", "grad_norm", "ema_momentum", "volumes_per_s", "tflops",
    "data_wait", "target_context_distance", "feature_std", "rankme", "masked_share", "content_tokens",
}  # fmt: skip
TIMED = ("volumes_per_s", "tflops", "data_wait", "peak_memory_bytes")


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; `test_report.py` draws."""
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


def rows_of(run: Path, split: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in TIMED} for row in rows if row["split"] == split]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, act: Callable[[], None]) -> None:
    """Act in the middle of a step of the loop."""
    real = train.attempts.try_step

    def step_then_act(state: Any, *arguments: Any) -> Any:
        result = real(state, *arguments)
        if state.step == steps:
            act()
        return result

    monkeypatch.setattr(train.attempts, "try_step", step_then_act)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise KeyboardInterrupt


def test_a_run_folder_holds_what_design_promises(recipe: Recipe, tiny_dataset: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    heard: list[str] = []
    summary = pretrain(recipe, open_dataset(tiny_dataset), run, Listener(say=heard.append))
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "checkpoints", "media", "summary.json", ".saved",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(set(row) >= TRAIN_KEYS for row in rows if row["split"] == "train")
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 5, 6]
    assert [row["samples"] for row in rows_of(run)] == [4, 8, 12, 16, 20, 24]
    assert [row["step"] for row in rows_of(run, "val")] == [0, 3, 6]
    assert rows_of(run)[-1]["ema_momentum"] == 1.0
    assert rows_of(run)[-1]["target_context_distance"] > 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{n:08d}" for n in (2, 4, 6)]
    assert sorted(path.name for path in (run / "media").iterdir()) == [
        f"{name}-0000000{step}.png" for name in ("masks", "pca") for step in (0, 6)
    ]
    assert load_recipe(str(run / "recipe.yaml")).model.dim == 32
    assert json.loads((run / "summary.json").read_text()) == summary
    assert (summary["status"], summary["step"], summary["num_val"]) == ("finished", 6, 4)
    assert "encoder 0.0M parameters" in heard[0]
    assert summary["dataset"]["rejected"] == 1
    assert sum(summary["dataset"]["by_device"].values()) == 20
    assert sum(summary["dataset"]["used"]["val"].values()) == 4


def test_the_page_names_every_column_of_a_row(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    """The table of docs/training.md; `mfu` is of GPUs whose peak is known."""
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    table = page.split("<!-- columns: begin -->")[1].split("<!-- columns: end -->")[0]
    named = re.findall(r"`([a-z0-9_]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "`" in line))
    assert len(named) == len(set(named))
    dataset = open_dataset(tiny_dataset)
    pretrain(
        make_recipe(),
        dataset,
        tmp_path / "run",
        labels={row.key: "odd" if int(row.participant_id) % 2 else "even" for row in dataset.samples},
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(named) == {column for row in rows for column in row} | {"mfu"}


def test_a_resumed_run_gives_the_losses_of_an_undisturbed_one(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(tiny_dataset)
    pretrain(recipe, dataset, tmp_path / "whole")
    for stop, act, error in ((3, terminate, TrainingStoppedError), (5, crash, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            stop_after(patch, stop, act)
            with pytest.raises(error):
                pretrain(recipe, dataset, tmp_path / "parts")
    heard: list[str] = []
    pretrain(recipe, dataset, tmp_path / "parts", Listener(say=heard.append))
    assert heard[0].startswith("resumed at step 4 ")
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts", "val") == rows_of(tmp_path / "whole", "val")
    for name in ("encoder", "target", "state"):
        path = f"checkpoints/step-00000006/{name}.safetensors"
        assert (tmp_path / "parts" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_sigterm_saves_and_asks_for_exit_code_143(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop_after(monkeypatch, 3, terminate)
    with pytest.raises(TrainingStoppedError, match="step 3, saved; the same command resumes") as stopped:
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    assert stopped.value.exit_code == 143
    assert (tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_continues(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    with monkeypatch.context() as patch:
        stop_after(patch, 5, crash)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, dataset, run)
    (run / "checkpoints" / "step-00000004" / "state.safetensors").write_bytes(b"half")
    heard: list[str] = []
    pretrain(recipe, dataset, run, Listener(say=heard.append))
    assert "passed over a checkpoint" in heard[0]
    assert "step-00000004: state.safetensors is not as it was written" in heard[0]
    assert heard[1].startswith("resumed at step 2 ")
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 5, 6]


def test_when_no_checkpoint_loads_the_run_fails_instead_of_starting_again(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path
) -> None:
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    pretrain(recipe, dataset, run)
    for path in (run / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        pretrain(recipe, dataset, run)
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_again(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, crash)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, dataset, run)
    heard: list[str] = []
    pretrain(recipe, dataset, run, Listener(say=heard.append))
    assert "starting at step 0" in heard[0]
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 5, 6]


def test_a_changed_recipe_is_refused_and_named(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    pretrain(make_recipe(), dataset, run)
    with pytest.raises(RunFolderError, match=r"train\.seed: 3 -> 8.*choose another --out") as refused:
        pretrain(make_recipe(train={"seed": 8}), dataset, run)
    assert refused.value.exit_code == 2
    heard: list[str] = []
    pretrain(make_recipe(checkpoint={"every_steps": 1}), dataset, run, Listener(say=heard.append))
    assert "is finished" in heard[-1]


def test_another_dataset_is_refused(
    make_recipe: Callable[..., Recipe],
    tiny_dataset: str,
    tiny_samples: list[Sample],
    make_dataset: Callable[..., str],
    tmp_path: Path,
) -> None:
    pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    other = make_dataset(tmp_path / "other", tiny_samples[2:])
    with pytest.raises(RunFolderError, match="trained on other samples"):
        pretrain(make_recipe(), open_dataset(other), tmp_path / "run")


def test_the_same_samples_in_other_shards_are_refused(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    """They would come in another order: some of an epoch twice, others never."""
    dataset = open_dataset(tiny_dataset)
    pretrain(make_recipe(), dataset, tmp_path / "run")
    for path in Path(shutil.copytree(tiny_dataset, tmp_path / "other")).glob("shards/*.tar"):
        path.rename(path.with_name(f"other-{path.name}"))
    moved = tuple(replace(row, shard=f"other-{row.shard}") for row in dataset.samples)
    with pytest.raises(RunFolderError, match="in other shards"):
        pretrain(make_recipe(), replace(dataset, url=str(tmp_path / "other"), samples=moved), tmp_path / "run")


def test_a_run_that_was_killed_before_its_first_file_begins(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a kill puts nothing in order
        with pytest.raises(KeyboardInterrupt):
            pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    assert [path.name.rpartition(".")[0] for path in (tmp_path / "run").iterdir()] == [".recipe.yaml"]
    assert pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")["status"] == "finished"


def test_a_folder_with_other_files_is_not_touched(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(RunFolderError, match="not a run folder"):
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_diverges_fails_and_says_so(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.feed.jitter", lambda x_BDHW, *_: x_BDHW * math.nan)
    recipe = make_recipe(train={"max_nonfinite": 2})
    with pytest.raises(NonFiniteError, match="2 updates in a row"):
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["skipped"]) == ("failed", 2)
    assert rows_of(tmp_path / "run")[0]["loss"] is None


def test_a_dataset_without_validation_says_so_loudly(
    make_recipe: Callable[..., Recipe],
    tiny_samples: list[Sample],
    make_dataset: Callable[..., str],
    tmp_path: Path,
) -> None:
    only_train = [replace(sample, meta=replace(sample.meta, split="train")) for sample in tiny_samples[:4]]
    dataset = open_dataset(make_dataset(tmp_path / "d", only_train))
    heard: list[str] = []
    summary = pretrain(make_recipe(), dataset, tmp_path / "run", Listener(say=heard.append))
    assert sum("NO VALIDATION" in sentence for sentence in heard) == 1
    assert summary["validation"] == "none"
    assert rows_of(tmp_path / "run", "val") == []


def test_filters_that_leave_nothing_are_named(
    make_recipe: Callable[..., Recipe],
    tiny_samples: list[Sample],
    make_dataset: Callable[..., str],
    tmp_path: Path,
) -> None:
    val = [replace(sample, meta=replace(sample.meta, split="val")) for sample in tiny_samples[:4]]
    dataset = open_dataset(make_dataset(tmp_path / "d", val))
    with pytest.raises(TrainError, match="no training sample"):
        pretrain(make_recipe(), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_may_live_outside_the_main_thread(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    done: list[dict[str, Any]] = []
    work = threading.Thread(
        target=lambda: done.append(pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run"))
    )
    work.start()
    work.join()
    assert done[0]["status"] == "finished"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_learns_to_predict_hidden_tokens_from_visible_ones(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, objective: str
) -> None:
    recipe = make_recipe(
        objective=OBJECTIVES[objective],
        optim={"lr": 5e-3, "ema_start": 0.99},
        train={"max_steps": 140, "micro_batch": 4},
        validation={"every_steps": 140},
        checkpoint={"every_steps": 140},
    )
    summary = pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    first, last = summary["validation"]["first"], summary["validation"]["last"]
    assert first["cosine"] < first["cosine_trivial"]
    assert last["loss"] < 0.6 * last["loss_trivial"]
    assert 1 - last["cosine"] < 0.5 * (1 - last["cosine_trivial"]), "a constant leaves more than twice as much"
    assert last["feature_std"] > 0.3
    assert summary["alarms"] == []


def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(recipe, open_dataset(tiny_dataset), run)
    before = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"saved at step 6 and has no checkpoint any more: put .*/checkpoints"):
        pretrain(recipe, open_dataset(tiny_dataset), run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_networks_that_do_not_fit_into_memory_are_one_sentence(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Recipe) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("train.step.build_networks", refuse)
    with pytest.raises(TrainError, match=r"networks alone do not fit into memory \(CUDA .*smaller model\.preset"):
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")


def test_a_run_without_one_update_is_not_finished(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.step.clip", lambda *_: math.nan)
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match="every update was left out"):
        pretrain(make_recipe(train={"max_steps": 2}), open_dataset(tiny_dataset), run)
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
