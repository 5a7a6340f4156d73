"""File names and cells that would run somewhere: one row each, inert in CSV, in pages and on a terminal."""

import csv
import datetime
import os
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from fovea.cli import main
from fovea.console import ERASE_LINE, print_table, say
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.header import Subject, Uids, protocol_header
from ingest.phantom.protocols import PROTOCOLS
from manifests.cohort import audit_join, load_participants
from manifests.page import page, paragraph, table, text
from manifests.store import FORMULA_STARTS, cell
from shards.reader import open_dataset
from shards.verify import verify

SCRIPT: Final = "<img src=x onerror=alert(1)>"
FORMULA: Final = '=HYPERLINK("http://example.org","x")'
TERMINAL: Final = "\x1b]0;owned\x07"

NAMES: Final = (
    "=1+1.dcm", "+1.dcm", "-1.dcm", "@SUM(A1).dcm", "\tx.dcm", "\rx.dcm", "'x.dcm", " =1.dcm", "＝1.dcm",
    "a\nb.dcm", "a\r\nb.dcm", "\n.dcm", 'quote".dcm', "a,b;c.dcm", f"{SCRIPT}.dcm", "&lt;b&gt;.dcm",
    "[red]x.dcm", "[link=http:]y.dcm", "[bold", ":smile:.dcm", f"{TERMINAL}.dcm", "\x1b[2J.dcm",
    os.fsdecode(b"\xff\xfe.dcm"), "\u202egnp.dcm", "😀.dcm", "日本語.dcm", "x" * 246 + ".dcm", "x.dcm ", " ",
    "back\\slash.dcm", "%2e%2e.dcm", "~.dcm", "*.dcm", "a?b.dcm", "{x}.dcm", "a!b.dcm", "x.zip!y.dcm", "a::b.dcm",
    "#.dcm",
)  # fmt: skip


def scan() -> bytes:
    protocol = PROTOCOLS["triton_macula_6x6_octa"].small()
    subject = Subject(
        participant_id="4123",
        laterality="L",
        model="Triton",
        uids=Uids.from_entropy("hostile"),
        acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    )
    volume = np.random.default_rng(1).integers(1, 250, protocol.shape, dtype=np.uint8)
    return encode_dicom(volume, protocol_header(protocol, subject))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every name is that of a file without content; one good scan lies in folders of such names."""
    root = tmp_path_factory.mktemp("hostile") / "source"
    root.mkdir()
    for name in NAMES:
        (root / name).write_bytes(b"")
    good = root / "=folder" / SCRIPT / os.fsdecode(b"\xe9\n") / "[red]" / "=scan \n😀"
    good.parent.mkdir(parents=True)
    good.write_bytes(scan())
    site = f'"{FORMULA.replace(chr(34), chr(34) * 2)} {SCRIPT} [red]"'
    (root / "participants.tsv").write_text(
        f"person_id\tclinical_site\tstudy_group\n4123\t{site}\thealthy\n", encoding="utf-8"
    )
    return root


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("job") / "dataset"
    run_ingest(make_job(str(source), str(out), geometry="block6"), beam_options([], num_workers=1))
    return out


def rows_of(dataset: Path, name: str) -> list[dict[str, str]]:
    with (dataset / "manifests" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def test_every_name_has_one_row_that_reads_back(source: Path, dataset: Path) -> None:
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    found = rows_of(dataset, "sources.csv")
    assert sorted(row["path"] for row in found) == sorted(cell(name) for name in files if name != "participants.tsv")
    assert {row["reason"] for row in found} == {"", "EMPTY_FILE"}
    assert not verify(str(dataset)).problems


@pytest.mark.parametrize("name", ["sources", "rejected", "samples"])
def test_no_cell_is_a_formula(name: str, dataset: Path) -> None:
    cells = [one for row in rows_of(dataset, f"{name}.csv") for one in row.values()]
    assert cells
    assert not [one for one in cells if one.lstrip(" ").startswith(FORMULA_STARTS)]


class Tags(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said += data


def tags(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fovea", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_audit_shows_hostile_cells_as_text(
    source: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "audit.html"
    labels = str(source / "participants.tsv")
    assert command(monkeypatch, "audit", str(dataset), "--labels", labels, "--html", str(html)) == 0
    printed = capsys.readouterr().out
    assert "[red]" in printed
    assert "\x1b" not in printed
    found = tags(html.read_text(encoding="utf-8"))
    assert "img" not in found.found
    assert not found.attributes & {"onerror", "src", "href"}
    assert f"{FORMULA} {SCRIPT} [red]" in found.said


def test_a_site_is_left_out_when_it_is_not_wanted(source: Path, tmp_path: Path) -> None:
    only = tmp_path / "source"
    shutil.copytree(source / "=folder", only)
    shutil.copy(source / "participants.tsv", only)
    job = make_job(str(only), str(tmp_path / "d"), geometry="block6", participant_metadata=False)
    run_ingest(job, beam_options([], num_workers=1))
    assert [row["clinical_site"] for row in rows_of(tmp_path / "d", "samples.csv")] == [""]
    assert all(SCRIPT.encode() not in path.read_bytes() for path in (tmp_path / "d/shards").iterdir())


def test_a_study_group_that_is_none_ends_in_one_printable_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text(f"person_id\tstudy_group\n4123\t{FORMULA}{SCRIPT}{TERMINAL}[red]\n", encoding="utf-8")
    assert command(monkeypatch, "ingest", str(source), str(tmp_path / "d"), "--labels", str(labels)) == 2
    said = capsys.readouterr().err
    assert "[red]" in said
    assert said.rstrip("\n").isprintable()


def test_the_join_of_hostile_labels_is_inert_in_a_page(source: Path, dataset: Path) -> None:
    join = audit_join(open_dataset(str(dataset)).samples, load_participants(str(source / "participants.tsv")))
    (site,) = join.by_site
    assert tags(table(["site"], [[site]], site)).found == {"table", "caption", "thead", "tr", "th", "tbody", "td"}


@pytest.mark.parametrize("hostile", [SCRIPT, "</td><script>x</script>", '" onmouseover="x', "&lt;", "\udcff", TERMINAL])
def test_a_page_holds_any_text(hostile: str, tmp_path: Path) -> None:
    whole = page(hostile, table([hostile], [[hostile]], hostile) + paragraph(hostile, hostile) + text(hostile))  # type: ignore[arg-type]
    (tmp_path / "page.html").write_text(whole, encoding="utf-8")
    found = tags(whole)
    assert not found.found & {"script", "img"}
    assert "onmouseover" not in found.attributes
    assert found.said.count(hostile.replace("\udcff", "\\udcff")) == 6


@pytest.mark.parametrize("hostile", ["[red]x[/red]", "[link=http://x]y[/link]", "[/]", "[bold", ":smile:", "\\[red]"])
def test_a_table_prints_markup_as_it_is(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(hostile, [hostile, "n"], [[hostile, 1]])
    assert capsys.readouterr().out.count(hostile) == 3


@pytest.mark.parametrize("hostile", [TERMINAL, "\x1b[2J", "\x9b2J", "a\rb", "a\nb", "\u202e", "\udcff", "\x00"])
def test_control_sequences_are_spelled_on_a_terminal(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t", ["c"], [[hostile]])
    say(hostile)
    say(ERASE_LINE + hostile)
    printed = capsys.readouterr().out
    spelled = hostile.encode("unicode_escape").decode()
    assert printed.count(spelled) == 3
    assert hostile not in printed.replace("\n", "")
    assert printed.splitlines()[-1] == f"\x1b[K{spelled}"
