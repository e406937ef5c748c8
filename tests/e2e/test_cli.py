"""The command line against a real node, as a person meets it: what goes wrong is told, and what to do about it.

Every refusal ends with its exit code, names the option or field, says the remedy, and shows no traceback.
"""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from bench.node import Node, Sink, environment, free_port, wait_until
from tests.e2e.harness import SETTLE_S, running_node

pytestmark = pytest.mark.timeout(120)
MAIN = "import sys; from tickwheel.cli import main; sys.argv[0] = 'tickwheel'; main()"
FAR = "2030-01-01T00:00:00"
BODY_BYTES_MAX = 256 * 1024
CREATE = ("jobs", "create", "--id", "b", "--url", "http://127.0.0.1:65001/")


class Shell:
    """Runs the command against one server, as its own process."""

    def __init__(self, server: str, directory: Path) -> None:
        own = {k: v for k, v in environment().items() if not k.startswith("TICKWHEEL_")}
        self.environment = own | {"TICKWHEEL_SERVER": server, "TZ": "UTC", "COLUMNS": "80"}
        self.directory = directory

    def __call__(self, *words: str, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words, flags=flags),
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
            cwd=self.directory, env=self.environment,
        )  # fmt: skip

    def command(self, *words: str, flags: Sequence[str] = ()) -> list[str]:
        """The command line of its process."""
        return [sys.executable, *flags, "-c", MAIN, *words]

    def good(self, *words: str) -> str:
        """What it prints; it must succeed."""
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture(scope="module")
def shell(standing: Node, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    directory = tmp_path_factory.mktemp("here")
    (directory / "long").write_bytes(b"x" * (BODY_BYTES_MAX + 1))
    made = Shell(standing.target, directory)
    made.good("jobs", "create", "--id", "there", "--url", "http://127.0.0.1:65001/", "--in", "1h")
    made.good("jobs", "create", "--id", "over", "--url", "http://127.0.0.1:65001/", "--in", "1h")
    made.good("jobs", "cancel", "over")
    return made


class Bad(NamedTuple):
    """A command line, its exit code, and what its message must hold: the place and the remedy."""

    words: tuple[str, ...]
    code: int
    place: str
    remedy: str


BAD = [
    Bad((*CREATE,), 2, "--cron", "exactly one of"),
    Bad((*CREATE, "--in", "1s", "--cron", "@daily"), 2, "--in and --cron", "exactly one of"),
    Bad((*CREATE, "--in", "soon"), 2, "--in", "write it as 90s"),
    Bad((*CREATE, "--cron", "61 * * * *"), 2, "--cron", "from 0 to 59"),
    Bad((*CREATE, "--cron", "* * *"), 2, "--cron", "write minute hour"),
    Bad((*CREATE, "--cron", "0 0 30 2 *"), 2, "--cron", "30 February"),
    Bad((*CREATE, "--cron", "@daily", "--time-zone", "Mars/X"), 2, "--time-zone", "Europe/Berlin"),
    Bad((*CREATE, "--every", "10ms"), 2, "--every", "1 s to"),
    Bad((*CREATE, "--at", FAR), 2, "--at", "add an offset"),
    Bad((*CREATE, "--at", "2020-01-01T00:00:00Z"), 2, "--at", "give a later time"),
    Bad((*CREATE, "--in", "1s", "--header", "Host: x"), 2, "--header", "set by the server"),
    Bad((*CREATE, "--in", "1s", "--header", "x"), 2, "--header", "name:value"),
    Bad((*CREATE, "--in", "1s", "--label", "x"), 2, "--label", "name=value"),
    Bad((*CREATE, "--in", "1s", "--method", "BREW"), 2, "--method", "must be one of"),
    Bad((*CREATE, "--in", "1s", "--max-attempts", "0"), 2, "--max-attempts", ">=1"),
    Bad((*CREATE, "--in", "1s", "--body", "@nowhere"), 2, "--body", "nowhere: No such file"),
    Bad((*CREATE, "--in", "1s", "--body", "@long"), 2, "--body", "at most 262,144"),
    Bad((*CREATE, "--in", "1s", "--flow-key", "k"), 2, "--flow-key", "leave it out"),
    Bad((*CREATE[:-1], "ftp://x", "--in", "1s"), 2, "--url", "http or https"),
    Bad((*CREATE[:-1], "http://169.254.169.254/", "--in", "1s"), 2, "--url", "metadata address"),
    Bad((*CREATE[:-1], "http://10.0.0.1/", "--in", "1s"), 2, "--url", "private address"),
    Bad(("jobs", "create", "--in", "1s"), 2, "--url", "Missing option"),
    Bad(("jobs", "create", "--id", "täglich", *CREATE[4:], "--in", "1s"), 2, "--id", "a-z"),
    Bad(("jobs", "create", "--id", "there", *CREATE[4:], "--in", "2h"), 4, "there", "exists"),
    Bad(("jobs", "create", "--from", "nowhere"), 2, "--from", "does not exist"),
    Bad(("jobs", "get", "nope"), 3, "'nope'", "no job"),
    Bad(("jobs", "get", "a b"), 2, "name", "must be namespaces/"),
    Bad(("jobs", "delete", "nope"), 3, "'nope'", "no job"),
    Bad(("jobs", "update", "there"), 2, "update", "at least one option"),
    Bad(("jobs", "update", "there", "--cron", "x"), 2, "--cron", "write minute hour"),
    Bad(("jobs", "pause", "there", "--etag", '"1"'), 4, "etag", "read the job again"),
    Bad(("jobs", "resume", "over"), 4, "'over' is CANCELLED", "PAUSED or DISABLED"),
    Bad(("jobs", "list", "--filter", "state = BOGUS"), 2, "--filter", "SCHEDULED, PAUSED"),
    Bad(("jobs", "count", "--by", "colour"), 2, "--by", "label:KEY"),
    Bad(("jobs", "list", "-n", "Bad NS"), 2, "--namespace", "must be namespaces/"),
    Bad(("jobs", "list", "--show-zone", "Mars/X"), 2, "--show-zone", "Europe/Berlin"),
    Bad(("executions", "get", "x"), 2, "'x'", "give the whole name"),
    Bad(("executions", "retry", "x", "--job", "there"), 3, "'x'", "no execution"),
    Bad(("preview", "--cron", "x"), 2, "--cron", "write minute hour"),
    Bad(("-s", "127.0.0.1:1", "--timeout", "1", "jobs", "list"), 5, "127.0.0.1:1", "--server"),
    Bad(("jobs", "frobnicate"), 2, "frobnicate", "--help"),
]


@pytest.mark.parametrize("bad", BAD, ids=[" ".join(bad.words[:12]) for bad in BAD])
def test_a_bad_command_line_is_told_what_to_do(shell: Shell, bad: Bad) -> None:
    done = shell(*bad.words)
    assert done.returncode == bad.code, done.stderr
    assert bad.place in done.stderr
    assert bad.remedy in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


# --- a day with the command line ---------------------------------------------------------------


def test_a_day_with_the_command_line(node: Node, sink: Sink, tmp_path: Path) -> None:
    shell = Shell(node.target, tmp_path)
    shell.good("jobs", "create", "--id", "night", "--url", sink.url(), "--cron", "30 2 * * *",
               "--time-zone", "Europe/Berlin")  # fmt: skip
    gap = shell.good("preview", "night", "--after", "2027-03-27T12:00:00Z", "--count", "2")
    assert "2027-03-28T03:00:00  +02:00  2027-03-28 01:00:00 UTC  clocks go forward" in gap
    shell.good("jobs", "update", "night", "--cron", "31 2 * * *")
    assert "(Europe/Berlin)" in shell.good("jobs", "get", "night"), "the zone was lost"
    assert "PAUSED" in shell.good("jobs", "pause", "night")
    assert "PAUSED" in shell.good("jobs", "list", "--filter", "state = PAUSED", "--consistent")
    assert "SCHEDULED" in shell.good("jobs", "resume", "night")
    shell.good("jobs", "run", "night")
    wait_until(lambda: sink.count() == 1, SETTLE_S, "the run")
    shell.good("jobs", "create", "--id", "dead", "--url", sink.url("/fail?times=1"), "--in", "0s",
               "--max-attempts", "1")  # fmt: skip
    wait_until(lambda: sink.count() == 2, SETTLE_S, "the failure")
    letters = shell.good("executions", "list", "--filter", "state = FAILED", "--consistent")
    assert "ATTEMPTS_EXHAUSTED 503" in letters
    shell.good("executions", "retry", letters.splitlines()[1].split()[0], "--job", "dead")
    wait_until(lambda: sink.count() == 3, SETTLE_S, "the retry")
    left = shell("executions", "list", "--filter", "state = FAILED", "--consistent")
    assert (left.returncode, left.stdout, left.stderr) == (0, "", "nothing found\n")
    assert "CANCELLED_BEFORE_DISPATCH" in shell.good("jobs", "cancel", "night")
    assert "total      2" in shell.good("jobs", "count", "--by", "state", "--consistent")
    assert shell.good("jobs", "delete", "night", "dead") == "deleted night\ndeleted dead\n"
    assert shell.good("jobs", "list", "--consistent", "-o", "ndjson") == ""


# --- a server that can't start ------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert len(done.stderr.splitlines()) <= 4, "it should be short"


def serve(
    shell: Shell, *options: str, flags: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    return shell(
        "serve", "--grpc-listen", f"127.0.0.1:{free_port()}", "--http-listen",
        f"127.0.0.1:{free_port()}", *options, flags=flags,
    )  # fmt: skip


def test_a_directory_in_use(standing: Node, shell: Shell) -> None:
    refused(serve(shell, "--data-dir", f"{standing.data_dir}"), 1, "in use", "its own --data-dir")
    assert standing.ready()


@pytest.mark.parametrize("option", ["--grpc-listen", "--http-listen"])
def test_a_port_in_use(shell: Shell, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(serve(shell, option, address), 1, address, option, "Address already in use")


def test_another_number_of_shards(shell: Shell, tmp_path: Path) -> None:
    with Node(tmp_path / "data", options=["--shards", "4"]) as node:
        node.start()
        node.terminate()
        done = serve(shell, "--data-dir", f"{node.data_dir}", "--shards", "8")
        refused(done, 1, "made with 4 shards", "set shards = 4")
        assert stat.S_IMODE(node.data_dir.stat().st_mode) == 0o700, "others can read bodies"


def test_a_directory_that_can_not_be_had(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(serve(shell, "--data-dir", f"{tmp_path}/file"), 1, f"{tmp_path}/file")
    refused(serve(shell, "--data-dir", f"{tmp_path}/file/x"), 1, f"{tmp_path}/file/x")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        refused(serve(shell, "--data-dir", f"{tmp_path}/x"), 1, "Permission denied")


def test_python_without_assertions(shell: Shell) -> None:
    refused(serve(shell, flags=["-O"]), 2, "python -O")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shrads = 3\n", ("shrads", "did you mean shards?")),
        ('log_level = "loud"\n', ("log_level", "debug", "tickwheel.toml")),
        ("shards = = 3\n", ("tickwheel.toml", "line 1")),
        ("#" * (1 << 21), ("tickwheel.toml", "longer than")),
        ('grpc_listen = "0.0.0.0:1"\n', ("grpc_listen", "insecure_listen", "loopback")),
    ],
)
def test_a_file_of_settings_with_a_slip(
    shell: Shell, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "tickwheel.toml"
    file.write_text(text)
    done = shell("serve", "--config", f"{file}", "--data-dir", f"{tmp_path}/data")
    refused(done, 2, *words)
    assert not (tmp_path / "data").exists()


def test_ctrl_c_ends_it_quietly(shell: Shell, tmp_path: Path) -> None:
    http_port = free_port()
    words = ("serve", "--data-dir", f"{tmp_path}/data", "--grpc-listen", "127.0.0.1:0",
             "--http-listen", f"127.0.0.1:{http_port}")  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *words], env=shell.environment, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"serving" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(SETTLE_S) == 0
        assert b"Traceback" not in rest
        assert b"stopped" in rest
