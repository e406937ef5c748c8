"""`tickwheel serve`: a node. Its options are the server's own table, read when the command is used.

The server is an extra of the distribution: without it the command says how to get it.
"""

import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tickwheel.server.config import Config, Option

_MISSING = (
    "the server is not installed here; install it with:  pip install 'tickwheel[server]'\n({error})"
)


def _config_module() -> ModuleType:
    try:
        from tickwheel.server import config  # noqa: PLC0415 - the client's command line works without
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return config


def missing(error: ModuleNotFoundError) -> Exception:
    """Say how to get what only the server needs. A module of our own that is missing is a fault, and shown as one."""
    if error.name is None or error.name.startswith("tickwheel"):
        return error
    return click.ClickException(_MISSING.format(error=error))


class ServeCommand(click.Command):
    """A command whose options are the table of `tickwheel.server.config`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The table as options, made the first time anyone asks."""
        if not self.params:
            lines: tuple[Option, ...] = _config_module().OPTIONS
            self.params = [
                click.Option(
                    ["--config"], metavar="FILE", help="Default: ./tickwheel.toml if it is there."
                ),
                *(_option(line) for line in lines),
            ]
        return super().get_params(ctx)


def _option(line: "Option") -> click.Option:
    """One line of the table. The server parses and checks: it names where a wrong value came from."""
    flag = line.flag
    words = f"{line.rule.help}  [{line.env}; {line.allowed}; default: {_shown(line)}]"
    if isinstance(line.default, bool):
        declaration = f"{flag}/--no-{flag[2:]}"
        return click.Option([declaration, line.name], default=None, help=words)
    return click.Option([flag, line.name], metavar="VALUE", help=words)


def _shown(line: "Option") -> str:
    if isinstance(line.default, bool):
        return str(line.default).lower()
    if isinstance(line.default, int):
        return str(_config_module().show(line.default, line.unit))
    return line.default if isinstance(line.default, str) else ",".join(line.default)


@click.command(cls=ServeCommand)
def serve(config: str | None, **given: Any) -> None:
    """Run a node until a signal ends it.

    Flags go before the environment, that before tickwheel.toml, that before the default.
    """
    settings = _load(config, given)
    raise SystemExit(_node()(settings))


def _node() -> "Callable[[Config], int]":
    try:
        from tickwheel.server.__main__ import serve as run  # noqa: PLC0415 - see the top
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return run


def _load(file: str | None, given: dict[str, Any]) -> "Config":
    from tickwheel.server import settings  # noqa: PLC0415 - see the top
    from tickwheel.server.errors import InvalidArgument  # noqa: PLC0415 - see the top

    try:
        return settings.load(given, os.environ, settings.find_file(file, os.environ))
    except InvalidArgument as error:
        lines = (f"{v.field}: {v.description}" for v in error.violations)
        raise click.UsageError("\n".join(lines)) from error
