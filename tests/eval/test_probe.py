"""From embeddings and labels to a verdict, its pictures, its report and the command."""

import dataclasses
import functools
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eval.errors import LabelsMissingError, PlaceError
from eval.figures import write_probe_pictures
from eval.metrics import score
from eval.probe import ProbeResult, run_probe
from eval.report import Picture, write_report
from eval.stats import bootstrap, permutation_null
from eval.store import Embeddings, read_embeddings, write_embeddings
from fovea.probe import command
from manifests.audit import AuditReport, SplitCount
from manifests.cohort import STUDY_GROUPS, read_participants
from manifests.errors import JoinError
from manifests.offenders import worst_offenders

EVIL = "<img src=x onerror=alert(1)>"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.linear.bootstrap", functools.partial(bootstrap, resamples=40))
    monkeypatch.setattr("eval.linear.permutation_null", functools.partial(permutation_null, times=200))


def embeddings(signal: float = 4.0, *, per_site: int = 8, labelled: bool = True, groups: int = 4) -> Embeddings:
    """Two volumes each of participants of three sites; a group shifts its own feature."""
    people = [f"{site}{number:03d}" for site in "147" for number in range(per_site)]
    rows = [(one, device) for one in people for device in ("topcon_triton", "zeiss_cirrus")]
    group_of = {one: int(one[1:]) % groups for one in people}
    features = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
    features[np.arange(len(rows)), [group_of[one] for one, _ in rows]] += signal
    split_of = {one: ("train", "train", "train", "train", "val", "test")[place % 6] for place, one in enumerate(people)}
    columns = {
        "key": tuple(f"{one}-{device}-R-protocol-{place:010x}" for place, (one, device) in enumerate(rows)),
        "participant_id": tuple(one for one, _ in rows),
        "clinical_site": ("",) * len(rows),
        "study_group": tuple(STUDY_GROUPS[group_of[one]] if labelled else "" for one, _ in rows),
        "device": tuple(device for _, device in rows),
        "laterality": ("R",) * len(rows),
        "protocol": ("protocol",) * len(rows),
        "split": tuple(split_of[one] for one, _ in rows),
    }
    intensity = np.random.default_rng(1).normal(size=(len(rows), 6)).astype(np.float32)
    return Embeddings(features=features, intensity=intensity, columns=columns, attributes={"encoder": "target"})


def participants_tsv(ids: set[str], groups: int = 4) -> bytes:
    lines = [f"{one}\t{STUDY_GROUPS[int(one[1:]) % groups]}" for one in sorted(ids)]
    return "\n".join(["person_id\tstudy_group", *lines, ""]).encode()


def test_a_signal_beats_chance_and_both_baselines(found: ProbeResult) -> None:
    result = found
    assert result.chance == 0.25
    assert result.num_participants == 24
    assert result.num_volumes == 48
    assert result.encoder.cv is not None
    assert result.encoder.cv.intervals["balanced_accuracy"].low > result.chance
    assert not any("baseline" in warning for warning in result.warnings)
    assert set(result.baselines) == {"intensity", "majority"}


def test_noise_is_called_noise() -> None:
    result = run_probe(embeddings(0.0))
    assert any("cross-validation: not distinguishable from chance" in warning for warning in result.warnings)


def test_all_three_sites_are_scored_and_losing_two_of_them_stops_the_probe() -> None:
    one = embeddings(labelled=False)
    everybody = set(one.columns["participant_id"])
    result = run_probe(one, read_participants(participants_tsv(everybody), name="p.tsv"))
    assert {site: count.matched for site, count in result.audit.by_site.items()} == {
        "ids 1...": 8,
        "ids 4...": 8,
        "ids 7...": 8,
    }
    first_site = read_participants(participants_tsv({one for one in everybody if one[0] == "1"}), name="p.tsv")
    with pytest.raises(JoinError, match=r"ids 4\.\.\. keeps 0 of 8 with OCT; ids 7\.\.\. keeps 0 of 8 with OCT"):
        run_probe(one, first_site)
    assert run_probe(one, first_site, allow_unmatched=True).num_participants == 8


def test_classes_that_do_not_occur_are_not_classes() -> None:
    result = run_probe(embeddings(groups=2))
    assert result.classes == STUDY_GROUPS[:2]
    assert result.chance == 0.5


def test_embeddings_without_labels_ask_for_them() -> None:
    with pytest.raises(LabelsMissingError, match="--labels") as caught:
        run_probe(embeddings(labelled=False))
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def found() -> ProbeResult:
    """A probe that found a signal."""
    return run_probe(embeddings())


def called_healthy(result: ProbeResult) -> ProbeResult:
    """The same, with cross-validated predictions that are all `healthy`."""
    assert result.encoder.cv is not None
    labels = np.arange(12) % 4
    scores = score(labels, np.tile([0.7, 0.1, 0.1, 0.1], (12, 1)), result.classes)
    cv = dataclasses.replace(result.encoder.cv, scores=scores)
    return dataclasses.replace(result, encoder=dataclasses.replace(result.encoder, cv=cv))


def test_an_encoder_without_a_score_is_compared_with_nothing(found: ProbeResult) -> None:
    worse = dataclasses.replace(called_healthy(found), baselines={"itself": found.encoder})
    assert "a baseline scores as well or better." in worse.warnings
    none = dataclasses.replace(found.encoder, cv=None)
    assert not any("baseline" in warning for warning in dataclasses.replace(worse, encoder=none).warnings)


def test_a_single_class_predictor_is_named_loudly(found: ProbeResult) -> None:
    assert (
        "cross-validation: PREDICTS A SINGLE CLASS: every participant is called healthy. This probe learned nothing."
        in called_healthy(found).warnings
    )


def test_pictures_are_png_files(tmp_path: Path, found: ProbeResult) -> None:
    paths = write_probe_pictures(tmp_path, found)
    assert [path.name for path in paths] == ["scores.png", "confusion-cv.png", "confusion-test.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def audit_report(url: str) -> AuditReport:
    return AuditReport(
        url=url,
        geometry="block6",
        code_version="0",
        num_files=3,
        by_status={"accepted": 2, "rejected": 1, "duplicate": 0, "excluded": 0},
        by_reason=(),
        by_warning={},
        by_split=(SplitCount(split="train", num_participants=1, num_samples=2, by_device={"zeiss_cirrus": 2}),),
        protocols=(),
        other_files={EVIL: 1},
        num_shards=1,
        problems=(),
        offenders=worst_offenders(()),
    )


class Inventory(HTMLParser):
    """Tags, images, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_inert_file_with_every_part(tmp_path: Path, found: ProbeResult) -> None:
    (tmp_path / "picture.png").write_bytes(PNG + b"pixels")
    training: list[dict[str, Any]] = [
        {"split": "train", "step": 1, "loss": 0.9, "loss_trivial": 0.95, "grad_norm": 1.0, "alarms": ["collapse"]},
        {"split": "val", "step": 1, "loss": 0.8, "rankme": 3.0, "cosine": None, "alarms": []},
        {"split": "train", "step": 2, "loss": float("nan"), "alarms": []},
        {"split": "train", "step": 3, "loss": 0.5, "alarms": []},
    ]
    write_report(
        tmp_path / "report.html",
        audit=audit_report(EVIL),
        training=training,
        probe=found,
        pictures=[Picture(path=tmp_path / "picture.png", caption=EVIL)],
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    inventory = Inventory()
    inventory.feed(page)
    assert "script" not in inventory.tags
    assert all(source.startswith("data:image/png;base64,") for source in inventory.sources)
    assert len(inventory.sources) == 4 + 1 + 2 + 1
    for sentence in (
        "3 files = 2 accepted + 1 rejected + 0 duplicate + 0 excluded",
        "0.900 to 0.500",
        "Alarm in training: collapse",
        "balanced accuracy",
        "Participants, cross-validated",
    ):
        assert sentence in page


def test_a_report_without_training_rows_says_so(tmp_path: Path, found: ProbeResult) -> None:
    write_report(tmp_path / "r.html", audit=audit_report("d"), training=[], probe=found)
    assert "a prediction that is constant): nothing was logged." in (tmp_path / "r.html").read_text(encoding="utf-8")


def run(*words: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(words))


def test_the_command_prints_the_audit_and_writes_json_and_pictures(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.zarr", embeddings())
    (tmp_path / "participants.tsv").write_bytes(participants_tsv(set(embeddings().columns["participant_id"])))
    store, labels, out = (str(tmp_path / name) for name in ("e.zarr", "participants.tsv", "probe"))
    result = run(store, "--labels", labels, "--out", out)
    assert result.exit_code == 0, result.output
    for sentence in (
        "Label join",
        "zeiss_cirrus",
        "balanced accuracy",
        "cross-validated",
        "100.0% of the participants",
    ):
        assert sentence in result.output
    saved = json.loads(Path(out, "probe.json").read_text())
    assert saved["chance"] == 0.25
    assert saved["encoder"]["cv"]["scores"]["balanced_accuracy"]["value"] > 0.5
    assert len(saved["encoder"]["cv"]["probabilities"]) == 24
    again = json.loads(run(store, "--labels", labels, "--json").stdout)
    assert again == saved
    assert read_embeddings(tmp_path / "e.zarr").attributes == saved["source"]


@pytest.mark.parametrize("out", ["file", "file/probe", "/proc/probe"])
def test_an_out_that_cannot_be_written_is_refused_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    write_embeddings(tmp_path / "e.zarr", embeddings())
    (tmp_path / "file").write_text("text")
    monkeypatch.setattr("eval.probe.run_probe", None)
    result = run(str(tmp_path / "e.zarr"), "--out", str(tmp_path / out))
    assert isinstance(result.exception, PlaceError), result.output
    assert str(result.exception).startswith(f"{tmp_path / out} cannot be written (")
    assert result.exception.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.zarr", "file"]


def probed(folder: Path, monkeypatch: pytest.MonkeyPatch, found: ProbeResult) -> list[str]:
    """Words of a command that finds this at once."""
    write_embeddings(folder / "e.zarr", embeddings())
    monkeypatch.setattr("eval.probe.run_probe", lambda *_, **__: found)
    return [str(folder / "e.zarr"), "--out", str(folder / "probe")]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_table_is_printed_although_the_folder_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: ProbeResult, options: list[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    words = probed(tmp_path, monkeypatch, found)
    monkeypatch.setattr("eval.figures.write_probe_pictures", full)
    result = run(*words, *options)
    assert isinstance(result.exception, OSError)
    assert "hold the rest" not in result.output
    assert ('"balanced_accuracy"' if options else "cross-validated") in result.output


def test_the_files_are_written_although_nobody_reads_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: ProbeResult
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    words = probed(tmp_path, monkeypatch, found)
    monkeypatch.setattr("fovea.console.print_table", closed)
    assert run(*words).exit_code == 1
    assert json.loads((tmp_path / "probe/probe.json").read_text())["chance"] == 0.25


@pytest.mark.parametrize(("seed", "code"), [("-1", 2), (str(2**32), 2), (str(2**32 - 1), 0), ("0", 0)])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path, seed: str, code: int) -> None:
    write_embeddings(tmp_path / "e.zarr", embeddings())
    result = run(str(tmp_path / "e.zarr"), "--seed", seed)
    assert result.exit_code == code, result.output
    assert ("--seed" in result.output) == bool(code)
