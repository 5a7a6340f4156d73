"""`fovea pretrain` as a user meets it: exit codes, sentences, the run it leaves, and resuming it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fovea.cli import main
from shards.reader import open_dataset, read_sample
from train.checkpoint import load_encoder, open_checkpoint
from train.features import pooled_features

TINY = ["--set", "data.grid=[8, 32, 32]", "--set", "data.pool=1", "--set", "model.patch=[2, 8, 8]"]
LONG = ["--set", "train.max_steps=4000"]
SMALL = [*TINY, "--set", "objective.num_visible=16", "--set", "objective.num_targets=12"]


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`fovea pretrain` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["fovea", "pretrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("recipe_and_override", "sentence"),
    [
        (("resnet", "train.seed=1"), "one of cpu-small, methods-multi-domain, methods-single-domain"),
        (("smoke", "train.max_stpes=1"), "the nearest is `train.max_steps`"),
        (("smoke", "train.device=cuda"), "torch sees no CUDA device"),
    ],
)
def test_misuse_ends_with_code_2_and_one_sentence(
    tmp_path: Path,
    tiny_dataset: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe_and_override: tuple[str, str],
    sentence: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run, (recipe, override) = tmp_path / "run", recipe_and_override
    arguments = ["--recipe", recipe, "--data", tiny_dataset, "--out", str(run), "--set", override]
    assert run_command(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert not run.exists()


def test_a_dataset_without_success_ends_with_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.json").write_text("{}")
    run = tmp_path / "run"
    assert run_command(monkeypatch, "--recipe", "smoke", "--data", str(tmp_path / "dataset"), "--out", str(run)) == 1
    assert "_SUCCESS" in capsys.readouterr().err
    assert not run.exists()


def test_a_filter_that_leaves_nothing_is_not_blamed_on_the_labels(
    tmp_path: Path, tiny_dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    people = sorted({row.participant_id for row in open_dataset(tiny_dataset).samples})
    lines = [f"{person}\thealthy\ttrain" for person in people]
    labels = tmp_path / "participants.tsv"
    labels.write_text("\n".join(["person_id\tstudy_group\trecommended_split", *lines, ""]))
    apart = ["--set", "data.devices=[zeiss_cirrus]", "--set", "data.protocols=[maestro2_3d_macula_oct]"]
    words = ["--recipe", "smoke", "--data", tiny_dataset, "--out", str(tmp_path / "run"), "--labels", str(labels)]
    assert run_command(monkeypatch, *words, *apart) == 2
    assert "no training sample that passes the recipe's `data` filters" in capsys.readouterr().err


def test_filters_leave_out_labels_as_they_leave_out_volumes(
    tmp_path: Path, tiny_dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A site without a volume of this device has lost nothing; one whose people were never scanned has."""
    rows = open_dataset(tiny_dataset).samples
    one = rows[0].device
    chosen = {row.participant_id for row in rows if row.device == one}
    people = sorted({row.participant_id for row in rows})
    assert set(people) > chosen
    lines = [f"{person}\thealthy\t{'here' if person in chosen else 'away'}" for person in people]
    labels, run = tmp_path / "participants.tsv", tmp_path / "run"
    labels.write_text("\n".join(["person_id\tstudy_group\tclinical_site", *lines, ""]))
    words = ["--recipe", "smoke", "--data", tiny_dataset, "--out", str(run), "--labels", str(labels), *SMALL]
    words += ["--set", f"data.devices=[{one}]", "--set", "train.max_steps=1", "--set", "log.wandb=false"]
    assert run_command(monkeypatch, *words) == 0, capsys.readouterr().err
    assert "away" not in capsys.readouterr().out
    with labels.open("a") as file:
        file.write("7777\thealthy\tlost\n")
    assert run_command(monkeypatch, *words) == 1
    assert "lost has 1 labelled and none with OCT" in capsys.readouterr().err


QUIET = [*SMALL, "--set", "log.wandb=false", "--set", "train.max_steps=4", "--set", "log.every_steps=1"]


@pytest.mark.slow
def test_a_run_goes_on_when_its_log_is_on_a_full_disk(tmp_path: Path, tiny_dataset: str) -> None:
    words = [sys.executable, "-m", "fovea", "pretrain", "--recipe", "smoke", "--data", tiny_dataset, *QUIET]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*words, "--out", str(tmp_path / "full")], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert open_checkpoint(tmp_path / "full").step == 4


@pytest.mark.slow
def test_a_run_goes_on_when_its_terminal_was_closed(tmp_path: Path, tiny_dataset: str) -> None:
    words = [sys.executable, "-m", "fovea", "pretrain", "--recipe", "smoke", "--data", tiny_dataset, *QUIET]
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*words, "--out", str(tmp_path / "closed")], stdin=theirs, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        os.read(ours, 1)
        os.close(ours)
    assert run.returncode == 0
    assert open_checkpoint(tmp_path / "closed").step == 4


@pytest.mark.slow
def test_a_run_goes_on_when_who_read_its_output_has_gone(tmp_path: Path, tiny_dataset: str) -> None:
    words = [sys.executable, "-m", "fovea", "pretrain", "--recipe", "smoke", "--data", tiny_dataset, *QUIET]
    with subprocess.Popen(
        [*words, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (0, b"")
    assert open_checkpoint(tmp_path / "run").step == 4


def test_labels_are_joined_probed_and_choose_the_best_checkpoint(
    tmp_path: Path, tiny_dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels are another thing than the study groups of the dataset: who is in which half of the cohort."""
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
    people = sorted({row.participant_id for row in open_dataset(tiny_dataset).samples})
    lines = [f"{one}\t{('healthy', 'insulin_dependent')[int(one) % 2]}" for one in people]
    labels = tmp_path / "participants.tsv"
    labels.write_text("\n".join(["person_id\tstudy_group", *lines, ""]))
    run = tmp_path / "run"
    arguments = ["--recipe", "smoke", "--data", tiny_dataset, "--out", str(run), *SMALL, "--labels", str(labels)]
    assert run_command(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert "100.0% of the participants with OCT have a label" in out
    assert "label (2 classes, scored on 2 participants)" in out
    shown = [line for line in out.splitlines() if " validation " in line]
    assert [len(re.findall(r"probe label [01]\.\d\d \(chance 0\.50\)", line)) for line in shown] == [1, 0, 0]
    again = r"probe label [01]\.\d\d \(at the start [01]\.\d\d, chance 0\.50\)"
    assert [len(re.findall(again, line)) for line in shown] == [0, 1, 1]
    best = json.loads((run / "best.json").read_text())
    assert f"best checkpoint: step {best['step']}, probe_label" in out
    assert open_checkpoint(run, "best").step == best["step"]

    labels.write_text("\n".join(["person_id\tstudy_group", *lines[1:], ""]))
    assert run_command(monkeypatch, *arguments) == 1
    assert "9 of 10 participants with OCT have a label" in capsys.readouterr().err
    assert run_command(monkeypatch, *arguments, "--allow-unmatched") == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_ends_the_process_with_code_143_after_saving(tmp_path: Path, tiny_dataset: str, workers: int) -> None:
    run = tmp_path / "run"
    readers = ["--set", f"data.workers={workers}"]
    arguments = ["--recipe", "smoke", "--data", tiny_dataset, "--out", str(run), *SMALL, *LONG, *readers]
    process = subprocess.Popen(
        [sys.executable, "-m", "fovea", "pretrain", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    while not (run / "metrics.jsonl").exists() or '"step": 5' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun and shells do: readers get it too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the same command resumes" in err
    assert load_encoder(run)[1].name == "smoke"


@pytest.mark.slow
def test_the_smoke_recipe_trains_resumes_and_embeds_full_size_volumes(
    tmp_path: Path, small_dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["--recipe", "smoke", "--data", small_dataset, "--out", str(run), "--json"]
    assert run_command(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["status"], summary["step"], summary["num_train"], summary["num_val"]) == ("finished", 6, 6, 2)
    assert summary["parameters"]["encoder"] > 1e5
    assert "step     6/6 validation" in err
    first = losses_of(run)

    (run / "checkpoints" / "step-00000006" / "encoder.safetensors").write_bytes(b"")
    assert run_command(monkeypatch, *arguments) == 0
    err = capsys.readouterr().err
    assert "passed over a checkpoint" in err
    assert "resumed at step 3" in err
    assert losses_of(run) == pytest.approx(first, rel=1e-5)

    encoder, recipe = load_encoder(run)
    dataset = open_dataset(small_dataset)
    samples = [read_sample(dataset, row) for row in dataset.samples[:3]]
    features_BC = pooled_features(encoder, recipe, samples, torch.device("cpu"))
    assert features_BC.shape == (3, 64)
    assert features_BC.isfinite().all()


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
