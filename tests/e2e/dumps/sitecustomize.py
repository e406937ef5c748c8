"""With this directory on PYTHONPATH a Python process writes, on SIGUSR2, what each of its tasks and threads waits for.

PYTHONPATH=tests/e2e/dumps make chaos
"""

import asyncio
import contextlib
import faulthandler
import signal
import sys


def dump(*_: object) -> None:
    """To stderr; the traceback of a task shows where it awaits."""
    with contextlib.suppress(RuntimeError):
        for task in asyncio.all_tasks(asyncio.get_running_loop()):
            sys.stderr.write(f"--- {task!r}\n")
            task.print_stack(file=sys.stderr)
    faulthandler.dump_traceback(file=sys.stderr)
    sys.stderr.flush()


if hasattr(signal, "SIGUSR2"):
    signal.signal(signal.SIGUSR2, dump)
