"""The command `tickwheel`; `root` puts it together."""

from tickwheel.cli.root import main

__all__ = ["main"]
