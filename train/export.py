"""An encoder for others: weights, what they need to be read, and the code that runs them, without a line of ours."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

import safetensors.torch

from train import encoder as encoder_code
from train.checkpoint import Choice, Which, load_encoder, open_checkpoint
from train.errors import ExportError
from train.presets import encoder_config

CODE_FILE: Final = "encoder.py"
WEIGHTS_FILE: Final = "encoder.safetensors"
CONFIG_FILE: Final = "config.json"
README_FILE: Final = "README.md"
BLOCK: Final = re.compile(r"```python\n(.*?)```", re.DOTALL)

README: Final = """# An encoder of retinal OCT volumes

Written by `fovea export`. `encoder.py` needs torch alone; `config.json` says what the encoder is and where it is from.

```python
import json

import torch
from safetensors.torch import load_file

from encoder import Encoder, EncoderConfig

config = json.load(open("config.json"))
encoder = Encoder(EncoderConfig(**config["encoder"])).eval()
encoder.load_state_dict(load_file("encoder.safetensors"))
```

A sample of a dataset is `volume`, integers `[D, H, W]`, and `meta`, its `meta.json`. Voxels are normalised by the
volume's mean and deviation over content, padding is 0, and then they are pooled; a token is content when half of it is,
on each axis.

```python
pool, patch = config["pool"], config["encoder"]["patch"]
inside = [torch.zeros(n).index_fill_(0, torch.arange(*edge), 1) for n, edge in zip(volume.shape, meta["content_box"])]
d, h, w = (axis.view(-1, edge * pool).mean(1) >= 0.5 for axis, edge in zip(inside, patch))
content = (d[:, None, None] & h[:, None] & w).view(1, -1)
x = (torch.from_numpy(volume.astype("float32")) - meta["intensity"]["mean"]) / max(meta["intensity"]["std"], 1e-3)
x = torch.nn.functional.avg_pool3d((x * inside[0][:, None, None] * inside[1][:, None] * inside[2])[None], pool)
with torch.no_grad():
    tokens = encoder(x, content, torch.tensor([meta["spacing_mm"]]))
vector = tokens[content].mean(0)
```

`tokens` is `[1, N, C]` in row-major order of the token grid; `vector` is what `fovea embed` stores for the volume.
"""


def export(
    run_or_checkpoint: Path, out: Path, *, which: Which = "target", choice: Choice = "newest", version: str
) -> dict[str, Any]:
    """Write the encoder of a run, its newest or its best, or of one checkpoint, to a new folder; returns its config.

    Args:
        run_or_checkpoint: a run folder, or one of its checkpoints.
        out: a folder that does not exist, or is empty. It appears whole.
        which: the EMA target, which is what is usually scored, or the context encoder.
        choice: of a run folder: its newest checkpoint, or the best by a probe.
        version: of fovea, for the record.

    Raises:
        CheckpointError: if there is no checkpoint that is whole, or no best one was chosen.
        ExportError: if there is something at `out`, or it cannot be written.
    """
    checkpoint = open_checkpoint(run_or_checkpoint, choice)
    encoder, recipe = load_encoder(checkpoint.path, which=which)
    weights = safetensors.torch.save({name: value.contiguous() for name, value in encoder.state_dict().items()})
    config = {
        "encoder": dataclasses.asdict(encoder_config(recipe)),
        "pool": recipe.data.pool,
        "grid": list(recipe.grid),
        "which": which,
        "step": checkpoint.step,
        "recipe": recipe.name,
        "recipe_sha256": recipe.hash(),
        "dataset_sha256": checkpoint.dataset_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "fovea": version,
    }
    files = {
        WEIGHTS_FILE: weights,
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
        CODE_FILE: Path(encoder_code.__file__).read_bytes(),
        README_FILE: README.encode(),
    }
    _publish(out, files)
    return config


def _publish(out: Path, files: dict[str, bytes]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists already: choose another --out, or remove it.")
    out = out.absolute()
    temporary = (out if out.exists() else out.parent) / f".{out.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        if out.exists():  # and is empty: it may be where we are, or mounted, and so cannot be replaced
            for name in files:
                (temporary / name).replace(out / name)
            temporary.rmdir()
        else:
            temporary.replace(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ExportError(f"{out} cannot be written ({error}): choose another --out.") from error
