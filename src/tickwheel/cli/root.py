"""The command `tickwheel`: a client of the server by default, and the server with `serve`.

Starts fast: gRPC, the client and rich are imported when a command needs them, the server by `serve` alone, so that the
command line also works where only the client is installed.
"""

import click

from tickwheel.cli.backup import backup, restore
from tickwheel.cli.cluster import cluster
from tickwheel.cli.completion import completion
from tickwheel.cli.executions import executions
from tickwheel.cli.jobs import jobs
from tickwheel.cli.moving import export, import_
from tickwheel.cli.preview import preview
from tickwheel.cli.serve import serve
from tickwheel.cli.settings import EXIT_CODES, with_connection, with_output
from tickwheel.version import VERSION

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code}  {text}" for code, text in EXIT_CODES)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(VERSION, message="tickwheel %(version)s")
@with_output
@with_connection(environment=True)
def main() -> None:
    """Schedule HTTP requests and fire them on time, and lose none when a machine dies.

    \b
    tickwheel serve --data-dir ./data                            start a server
    tickwheel jobs create --url https://example.com --in 90s     make a job
    tickwheel jobs list -o json                                  look at all
    """


for _command in (
    serve, jobs, executions, preview, cluster, export, import_, backup, restore, completion,
):  # fmt: skip
    main.add_command(_command)
