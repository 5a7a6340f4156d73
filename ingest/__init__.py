"""One file in, one `VolumeRecord` or one `Rejection` out: pure functions, no pipeline."""
