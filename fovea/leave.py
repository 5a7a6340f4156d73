"""The end of a process: everything is written and said, and the interpreter is not torn down.

Threads of native libraries (gRPC under Beam, gloo under torch) may want the interpreter while it is finalized. CPython
before 3.14 ends such a thread by unwinding its C++ frames, which abort the process: exit status 134 after the work was
done (https://github.com/python/cpython/issues/87135). So the last `atexit` function ends the process itself.
"""

import atexit
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Never


def leave_after(work: Callable[[], object]) -> Never:
    """Run the work of a process, and end it as `sys.exit` would: joined threads, `atexit` functions, flushed output.

    Args:
        work: returns when it is done; or raises SystemExit with a status, or anything else, which ends with 1.
    """
    ending = _Ending()
    atexit.register(ending.leave)  # registered first: called last
    try:
        work()
    except SystemExit as asked:
        ending.status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        raise
    ending.status = 0
    sys.exit(0)


@dataclass(slots=True)
class _Ending:
    status: int = 1

    def leave(self) -> None:
        logging.shutdown()  # registered by its import, before us
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                self._tell(error)
        os._exit(self.status)

    def _tell(self, error: OSError) -> None:
        """What was printed did not arrive, which a status of 0 would deny. A reader that left knows it."""
        self.status = self.status or 1
        if not isinstance(error, BrokenPipeError):
            os.write(2, f"fovea: what was printed could not be written: {error.strerror}.\n".encode())
