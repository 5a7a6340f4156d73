"""How a conversion reports where it is, so that whoever guards it can tell a hang from hard work."""

from typing import Final, Literal

from ingest.record import Facts

Stage = Literal["parse", "frames", "resample"]
"""Header; pixel data found, checked and decoded; content judged and resampled."""


class Watch:
    """Hears of every stage and every frame. This one does nothing: nobody is watching."""

    def begin(self, stage: Stage, facts: Facts) -> None:
        """A stage begins, and this much is known of the file."""

    def frame(self, num_voxels: int) -> None:
        """A frame of so many voxels is decoded next."""


UNWATCHED: Final = Watch()
