"""What is not about jobs: the node's options, completion, the version, and how fast it starts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tickwheel.cli import main
from tickwheel.cli import serve as serve_module
from tickwheel.cli.settings import EXIT_CODES
from tickwheel.server import config


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[config.Config]:
    """The settings that a node was started with."""
    started: list[config.Config] = []

    def run(settings: config.Config) -> int:
        started.append(settings)
        return 7

    monkeypatch.setattr(serve_module, "_node", lambda: run)
    return started


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(main, ["serve", *arguments], env=env)


def test_every_option_of_the_server_is_one_of_serve() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for line in config.OPTIONS:
        assert line.flag in result.output
        assert line.env in result.output.replace("\n", "").replace(" ", "")


def test_flags_beat_the_environment_and_that_the_file(
    served: list[config.Config], tmp_path: Path
) -> None:
    file = tmp_path / "own.toml"
    file.write_text('shards = 2\ndrain_timeout_ms = "3s"\nlog_level = "error"\n')
    result = invoke(
        "--config", str(file), "--shards", "4", "--reflection",
        env={"TICKWHEEL_SHARDS": "3", "TICKWHEEL_LOG_LEVEL": "debug"},
    )  # fmt: skip
    assert result.exit_code == 7
    (settings,) = served
    assert (settings.shards, settings.log_level, settings.drain_timeout_ms) == (4, "debug", 3_000)
    assert settings.reflection


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shards", "0"], "1 to 1024"),
        (["--shards", "many"], "--shards"),
        (["--config", "/no/such.toml"], "No such file"),
        (["--nothing"], "No such option"),
    ],
)
def test_a_wrong_option_ends_with_two(
    served: list[config.Config], flags: list[str], words: str
) -> None:
    result = invoke(*flags)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not served


def test_without_the_server_it_says_how_to_get_it() -> None:
    missing = ModuleNotFoundError("No module named 'uvloop'", name="uvloop")
    assert "pip install 'tickwheel[server]'" in str(serve_module.missing(missing))
    own = ModuleNotFoundError("No module named 'tickwheel.x'", name="tickwheel.x")
    assert serve_module.missing(own) is own


def test_the_command_is_the_node() -> None:
    assert main.commands["serve"] is serve_module.serve


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_TICKWHEEL_COMPLETE" in result.output


def test_the_help_documents_the_exit_codes() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert "not found" in result.output
    assert "Exit codes" in result.output


def test_the_start_imports_nothing_heavy() -> None:
    code = (
        "import sys; import tickwheel.cli;"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'yaml', 'asyncio', 'tickwheel.client',"
        " 'tickwheel.server'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"


def test_the_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("tickwheel ")


def test_the_page_tells_every_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "CLI.md").read_text()
    for code, words in EXIT_CODES:
        assert f"| {code} | {words} |" in page
