"""Lines for people: inert, but for what takes the place of a line that is redrawn."""

from collections.abc import Callable

import pytest

from fovea.console import ERASE_LINE, note, say
from fovea.demo import _pretrain
from train.errors import TrainingStoppedError


@pytest.mark.parametrize("speak", [say, note])
def test_only_the_sequence_that_erases_a_line_is_written(
    speak: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    speak(f"{ERASE_LINE}step 1\x1b[2J{ERASE_LINE}")
    said = "".join(capsys.readouterr())
    assert said == f"{ERASE_LINE}step 1\\x1b[2J\\r\\x1b[K\n"


def test_a_demo_that_is_stopped_in_training_says_that_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    def stopped(*_: object) -> None:
        raise TrainingStoppedError("stopped by SIGTERM at step 3, saved; the same command resumes.")

    monkeypatch.setattr("train.loop.pretrain", stopped)
    monkeypatch.setattr("shards.reader.open_dataset", lambda url: url)
    with pytest.raises(TrainingStoppedError, match=r"^stopped by SIGTERM: the same command begins anew\.$"):
        _pretrain(tmp_path, 0)  # type: ignore[arg-type]
