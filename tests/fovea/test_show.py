import json
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk

import fovea.cli
from ingest.picture import sample_figure
from shards.reader import open_dataset, read_sample

SMALL = (16, 64, 48)


@pytest.fixture
def folder(make_sample, make_dataset, tmp_path):
    return Path(make_dataset(tmp_path / "dataset", [make_sample(number, SMALL) for number in range(4)]))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line as a user does -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(fovea.cli, "COMMANDS", {"show": "ingest", "verify": "train"})

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fovea", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            fovea.cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_a_sample_as_a_picture(run, folder, tmp_path):
    key = open_dataset(folder).samples[0].key
    code, out, _ = run("show", folder, key, "--png", tmp_path / "new/sample.png")
    assert (code, out) == (0, f"wrote {tmp_path / 'new/sample.png'}\n")
    picture = matplotlib.image.imread(tmp_path / "new/sample.png")
    assert picture.shape[1] > 1000
    grey = picture[..., :3].mean(axis=2)
    assert np.ptp(grey) > 0.9
    orange = picture[..., 0] - picture[..., 2] > 0.3
    assert orange.sum() > 5000, "the content box is outlined"


def test_pictures_keep_the_aspect_ratio_of_the_tissue(make_sample, tmp_path):
    for name, spacing in (("flat", (0.1, 0.01, 0.1)), ("tall", (0.1, 0.1, 0.1))):
        sample_figure(make_sample(0, SMALL, spacing_mm=spacing), tmp_path / f"{name}.png")
    flat, tall = (matplotlib.image.imread(tmp_path / f"{name}.png").shape[0] for name in ("flat", "tall"))
    assert tall > flat + 300


def test_the_same_sample_gives_the_same_picture(make_sample, tmp_path):
    for name in "ab":
        sample_figure(make_sample(0, SMALL), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_sample_as_a_volume_with_its_true_spacing(run, folder, tmp_path, suffix):
    dataset = open_dataset(folder)
    sample = read_sample(dataset, dataset.samples[1])
    path = tmp_path / f"sample{suffix}"
    assert run("show", folder, sample.key, "--nifti", path)[0] == 0
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sample.volume)
    depth, height, width = sample.meta.spacing_mm
    assert image.GetSize() == sample.volume.shape[::-1]
    assert image.GetSpacing() == pytest.approx((width, height, depth), rel=1e-6)


def test_an_unknown_key_is_bad_usage_and_names_the_nearest(run, folder, tmp_path):
    key = open_dataset(folder).samples[0].key
    code, _, err = run("show", folder, key.replace("-R-", "-L-"), "--png", tmp_path / "sample.png")
    assert code == 2
    assert err.startswith("fovea: ")
    assert key in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sample.png").exists()


def test_a_damaged_sample_is_not_shown(run, folder, tmp_path):
    row = open_dataset(folder).samples[0]
    path = folder / "shards" / row.shard
    data = bytearray(path.read_bytes())
    data[row.volume_offset + 500] ^= 1
    path.write_bytes(data)
    code, _, err = run("show", folder, row.key, "--png", tmp_path / "sample.png")
    assert (code, row.key in err, "fovea verify" in err) == (1, True, True)
    assert not (tmp_path / "sample.png").exists()


@pytest.mark.parametrize("options", [[], ["--nifti", "sample.mha"]])
def test_what_to_write_must_be_said(run, folder, options):
    code, _, err = run("show", folder, open_dataset(folder).samples[0].key, *options)
    assert code == 2
    assert "--nifti" in err


def test_verify_says_so_when_every_byte_is_as_committed(run, folder):
    code, out, _ = run("verify", folder)
    assert code == 0
    assert out.startswith(f"{folder}: 4 shards, 4 samples, ")
    assert out.endswith("every byte is as committed\n")


def test_verify_prints_a_line_a_problem(run, folder):
    shard = min(folder.glob("shards/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = run("verify", folder)
    first, last = out.splitlines()
    assert (code, first.startswith(f"shards/{shard.name}: has "), last.endswith("1 problems")) == (1, True, True)


def test_verify_for_machines(run, folder):
    (folder / "_SUCCESS").unlink()
    code, out, _ = run("verify", folder, "--json")
    result = json.loads(out)
    assert (code, result["ok"], result["problems"][0]["file"]) == (1, False, "_SUCCESS")


def test_a_dataset_that_does_not_exist_is_bad_usage(run, tmp_path):
    what_to_do = "give the folder that `fovea ingest` wrote"
    for words in (["verify", tmp_path / "absent"], ["show", tmp_path / "absent", "key", "--png", "x.png"]):
        code, out, err = run(*words)
        assert (code, out, err) == (2, "", f"fovea: there is no dataset at {tmp_path / 'absent'}: {what_to_do}.\n")


@pytest.mark.parametrize("name", ["show", "verify"])
def test_help_has_an_example(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"Example: fovea {name}" in out
