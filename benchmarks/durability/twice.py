"""An engine that lost the answer of a worker does its bundle again: every side effect happens twice."""

from collections.abc import Callable
from typing import Any


def do_everything_twice() -> None:
    """Every step of ours does each element twice; what it gives the second time is what counts.

    For jobs in one process: workers of their own would not know of it.
    """
    import beam_jobs.build_dataset as graph
    from beam_jobs import transforms

    for step in (transforms.Discover, transforms.Probe, transforms.Settle, transforms.Pack):
        step.process = _twice(step.process)
    for name in ("commit_dataset", "commit_retry"):
        setattr(graph, name, _twice_at_once(getattr(graph, name)))


def _twice(process: Callable[..., Any]) -> Callable[..., Any]:
    def both(self: Any, *args: Any, **choices: Any) -> Any:
        list(process(self, *args, **choices))
        return list(process(self, *args, **choices))

    return both


def _twice_at_once(step: Callable[..., None]) -> Callable[..., None]:
    def both(*args: Any, **choices: Any) -> None:
        step(*args, **choices)
        step(*args, **choices)

    return both
