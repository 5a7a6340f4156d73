"""`python -m fovea`, and the `fovea` command."""

from fovea.cli import main
from fovea.leave import leave_after


def run() -> None:
    """Run the command that the process was started with, and end the process."""
    leave_after(main)


if __name__ == "__main__":
    run()
