"""An exported encoder, used by the lines of its own README in a Python that imports nothing of fovea."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.reader import open_dataset, read_sample
from train.checkpoint import load_encoder
from train.config import Recipe
from train.errors import ExportError, NoCheckpointError
from train.export import BLOCK, export
from train.features import pooled_features, token_features
from train.loop import pretrain

AROUND = """
import sys
sys.path.insert(0, ".")
import numpy
volume = numpy.load("../volume.npy")
meta = json.load(open("../meta.json"))
"""
AFTER = """
assert not {"train", "shards", "fovea", "pydantic"} & sys.modules.keys()
numpy.savez("../found.npz", tokens=tokens, content=content, vector=vector)
"""


@pytest.mark.parametrize(("objective", "which"), [("vjepa", "target"), ("vjepa", "context"), ("methods", "target")])
def test_the_lines_of_the_readme_give_our_tokens(
    make_recipe: Callable[..., Recipe],
    tiny_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    which: str,
) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
    grid = {"data": {"pool": 2}, "model": {"patch": (1, 4, 4), "rope_reference_mm": (0.1, 0.1, 0.1)}}
    dataset = open_dataset(tiny_dataset)
    pretrain(make_recipe(objective={"name": objective}, train={"max_steps": 2}, **grid), dataset, tmp_path / "run")
    config = export(tmp_path / "run", tmp_path / "encoder", which=which, version="0.0")
    assert (config["step"], config["which"]) == (2, which)
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == [
        "README.md", "config.json", "encoder.py", "encoder.safetensors",
    ]  # fmt: skip

    stored = read_sample(dataset, dataset.samples[0])
    sample = replace(stored, meta=replace(stored.meta, content_box=((1, 8), (3, 32), (0, 20))))
    np.save(tmp_path / "volume.npy", sample.volume)
    (tmp_path / "meta.json").write_text(json.dumps(asdict(sample.meta)))
    load, use = BLOCK.findall((tmp_path / "encoder/README.md").read_text())
    code = "import json, sys; sys.path.insert(0, '.')\n" + load + AROUND + use + AFTER
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path / "encoder", check=True, timeout=120)

    found = np.load(tmp_path / "found.npz")
    encoder, recipe = load_encoder(tmp_path / "run", which=which)
    tokens, content = token_features(encoder, recipe, [sample], torch.device("cpu"))
    assert np.array_equal(found["content"], content.numpy())
    assert 0 < content.sum() < content.numel()
    np.testing.assert_allclose(found["tokens"][found["content"]], tokens[content].numpy(), atol=1e-5)
    vector = pooled_features(encoder, recipe, [sample], torch.device("cpu"))[0]
    np.testing.assert_allclose(found["vector"], vector.numpy(), atol=1e-5)


def test_nothing_is_overwritten_and_nothing_is_left_half(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("years")
    with pytest.raises(NoCheckpointError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "out", version="0.0")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_place_that_is_taken_is_refused(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
    pretrain(make_recipe(train={"max_steps": 1}), open_dataset(tiny_dataset), tmp_path / "run")
    with pytest.raises(ExportError, match="exists already"):
        export(tmp_path / "run", tmp_path / "run", version="0.0")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(Path("../run"), Path(), version="0.0")
    export(tmp_path / "run", tmp_path / "there", version="0.0")
    names = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert len(names) == 4
    assert sorted(path.name for path in Path().iterdir()) == names
