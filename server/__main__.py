"""Floor 7. Runs the node on uvloop. Refuses `python -O`: assertions are how it refuses a corrupt state.

gRPC's core writes lines of its own, with bytes that peers chose: silent, unless GRPC_VERBOSITY asks for them.

Must never import: anything but `app`, `config`, `errors`, `logs`, `settings`.
"""

import asyncio
import os
import sys

import uvloop

from tickwheel.server.config import Config
from tickwheel.server.errors import TickwheelError
from tickwheel.server.logs import configure
from tickwheel.server.settings import load_from_environment


def serve(config: Config) -> int:
    """Serve until a signal; the exit code. Errors of starting are told in one line, not as a traceback."""
    if not __debug__:
        print(
            "tickwheel does not run under python -O: its assertions protect your data",
            file=sys.stderr,
        )
        return 2
    configure(config.log_format, config.log_level, sys.stderr)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tickwheel.server import app  # noqa: PLC0415 - gRPC reads its variable when it is imported

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(app.run(config))
    except TickwheelError as error:
        print(f"tickwheel: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"tickwheel: {where}{error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(serve(load_from_environment(sys.argv[1:])))
