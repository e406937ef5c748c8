"""Configuration: precedence, limits, the words of errors, and that the docs are the table."""

from pathlib import Path

import pytest

from tickwheel.server import config
from tickwheel.server.config import OPTIONS, Config
from tickwheel.server.errors import InvalidArgument
from tickwheel.server.settings import load, load_from_environment, reference

ROOT = Path(__file__).resolve().parents[2]


def refused(**flags: object) -> str:
    with pytest.raises(InvalidArgument) as caught:
        load(flags, {})
    return "\n".join(f"{v.field}: {v.description}" for v in caught.value.violations)


def test_the_page_is_made_from_the_table() -> None:
    written = (ROOT / "docs" / "CONFIG.md").read_text()
    assert written == reference(), (
        "run: python -c 'from tickwheel.server.settings import reference; print(reference(), end=str())' "
        "> docs/CONFIG.md"
    )


def test_defaults_are_valid_and_all_named() -> None:
    settings = load({}, {})
    assert settings == Config()
    assert settings.grpc_address == ("127.0.0.1", 7070)
    assert settings.http_address == ("127.0.0.1", 7080)
    assert len({line.flag for line in OPTIONS} | {line.env for line in OPTIONS}) == 2 * len(OPTIONS)


def test_flags_go_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "tickwheel.toml"
    file.write_text('shards = 2\nprefetch_ms = "3s"\nlog_level = "debug"\n')
    env = {"TICKWHEEL_SHARDS": "3", "TICKWHEEL_PREFETCH_MS": "4s"}
    settings = load({"shards": "5", "log_level": None}, env, file)
    assert (settings.shards, settings.prefetch_ms, settings.log_level) == (5, 4_000, "debug")
    assert settings.flush_interval_ms == 1_000


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("segment_bytes", "8MiB", 8 << 20),
        ("segment_bytes", " 2 GiB ", 2 << 30),
        ("segment_bytes", str(1 << 20), 1 << 20),
        ("drain_timeout_ms", "250ms", 250),
        ("drain_timeout_ms", "2m", 120_000),
        ("history_ms", "7d", 7 * 86_400_000),
        ("shards", "16", 16),
        ("shards", 16, 16),
        ("insecure_listen", "yes", True),
        ("insecure_listen", "OFF", False),
        ("insecure_listen", True, True),
        ("allow_private_targets", "", ()),
        ("allow_private_targets", "10.0.0.0/8, fd00::/8", ("10.0.0.0/8", "fd00::/8")),
        ("allow_private_targets", ["10.0.0.0/8"], ("10.0.0.0/8",)),
        ("etcd", "e1:2379, https://e2:2379", ("e1:2379", "https://e2:2379")),
        ("etcd", ["[fd00::1]:2379"], ("[fd00::1]:2379",)),
        ("data_dir", "/srv/x", "/srv/x"),
    ],
)
def test_values_are_read(name: str, text: object, value: object) -> None:
    assert getattr(load({name: text}, {}), name) == value


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("shards", "0", "0 is not 1 to 1024"),
        ("shards", "1025", "1025 is not 1 to 1024"),
        ("shards", "many", "'many' is not 1 to 1024 (from --shards)"),
        ("shards", "64MiB", "'64MiB' is not"),
        ("shards", True, "True is not"),
        ("shards", 1.5, "1.5 is not"),
        ("segment_bytes", "64MB", "1MiB to 4GiB"),
        ("segment_bytes", (1 << 20) + 1, "not a multiple of 4KiB"),
        ("drain_timeout_ms", "-1", "'-1' is not 0 to 10m"),
        ("insecure_listen", "maybe", "true or false"),
        ("insecure_listen", 1, "true or false"),
        ("log_format", "xml", "'xml' is not text or json"),
        ("data_dir", "", "'' is not text"),
        ("allow_private_targets", "10.0.0.0/99", "'10.0.0.0/99' is not a network"),
        ("allow_private_targets", [1], "networks in CIDR form"),
        ("allow_private_targets", 5, "networks in CIDR form"),
        ("etcd", "e1:2379, e2", "'e2' is not host:port"),
        ("etcd", "e1:70000", "'e1:70000' is not host:port"),
        ("etcd", "ftp://e1:2379", "'ftp://e1:2379' is not host:port"),
        ("grpc_listen", "7070", "is not host:port"),
        ("grpc_listen", "h:70000", "is not host:port"),
        ("grpc_listen", "0.0.0.0:7070", "insecure_listen"),
        ("http_listen", "example.com:80", "insecure_listen"),
        ("http_listen", "[::]:80", "insecure_listen"),
        ("http_listen", "127.0.0.1:7070", "gRPC listener"),
        ("dispatch_concurrency_per_target", "2000", "more than dispatch_concurrency (1024)"),
        ("wheel_horizon_ms", "10s", ""),
        ("prefetch_ms", "5m", ""),
        ("checkpoint_interval_ms", "10", "less than flush_interval_ms (1000)"),
    ],
)
def test_what_is_wrong_is_refused_and_named(name: str, raw: object, words: str) -> None:
    if not words:
        load({name: raw}, {})
        return
    message = refused(**{name: raw})
    assert message.startswith(f"{name}: ")
    assert words in message
    assert f"--{name.replace('_', '-')}" in message


def test_the_window_is_at_least_what_is_read_ahead() -> None:
    message = refused(wheel_horizon_ms="10s", prefetch_ms="11s")
    assert "more than wheel_horizon_ms (10000)" in message


def test_a_config_made_by_hand_checks_itself_too() -> None:
    with pytest.raises(InvalidArgument):
        Config(shards=0)
    with pytest.raises(InvalidArgument):
        Config(shards="4")  # type: ignore[arg-type]


@pytest.mark.parametrize("listen", ["localhost:1", "127.8.0.1:1", "[::1]:1"])
def test_loopback_needs_no_leave(listen: str) -> None:
    assert load({"grpc_listen": listen}, {}).grpc_address[1] == 1


def test_insecure_listen_opens_the_door() -> None:
    settings = load({"grpc_listen": "0.0.0.0:1", "insecure_listen": True}, {})
    assert settings.grpc_address == ("0.0.0.0", 1)


def test_two_free_ports_do_not_clash() -> None:
    settings = load({"grpc_listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0"}, {})
    assert settings.grpc_address == settings.http_address == ("127.0.0.1", 0)


def test_all_faults_come_at_once_and_say_where_they_came_from(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('log_level = "loud"\n')
    with pytest.raises(InvalidArgument) as caught:
        load({}, {"TICKWHEEL_SHARDS": "0"}, file)
    texts = [f"{v.field} {v.description}" for v in caught.value.violations]
    assert [text.split()[0] for text in texts] == ["shards", "log_level"]
    assert "(from TICKWHEEL_SHARDS)" in texts[0]
    assert f"(from {file})" in texts[1]


def test_unknown_names_are_refused_with_a_hint(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text("shardz = 1\n[qqqqqq]\nx = 1\n")
    with pytest.raises(InvalidArgument) as caught:
        load({"datadir": "x"}, {"TICKWHEEL_SHARD": "1"}, file)
    words = {v.field: v.description for v in caught.value.violations}
    assert words == {
        "shardz": "no such option (file); did you mean shards?",
        "qqqqqq": "no such option (file)",
        "shard": "no such option (environment); did you mean shards?",
        "datadir": "no such option (flag); did you mean data_dir?",
    }
    assert {v.reason for v in caught.value.violations} == {"UNKNOWN"}


@pytest.mark.parametrize(
    "key",
    [
        "TICKWHEEL_PORT",
        "TICKWHEEL_PORT_7070_TCP_ADDR",
        "TICKWHEEL_SERVICE_HOST",
        "TICKWHEEL_SERVICE_PORT_GRPC",
        "TICKWHEEL_CONFIG",
        "SHARDS",
    ],
)
def test_what_others_put_into_the_environment_is_left_alone(key: str) -> None:
    assert load({}, {key: "x"}) == Config()


@pytest.mark.parametrize("content", [b"shards = ", b"\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"t\.toml"):
        load({}, {}, file)
    with pytest.raises(InvalidArgument, match=r"absent\.toml"):
        load({}, {}, tmp_path / "absent.toml")


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {})
    assert load_from_environment([]) == Config()
    Path("tickwheel.toml").write_text("shards = 7\n")
    assert load_from_environment(["serve"]).shards == 7
    assert load_from_environment(["serve", "--shards", "8"]).shards == 8
    other = tmp_path / "other.toml"
    other.write_text("shards = 9\n")
    assert load_from_environment(["--config", str(other), "--no-reflection"]).shards == 9
    monkeypatch.setattr("os.environ", {"TICKWHEEL_CONFIG": str(other)})
    assert load_from_environment(["--reflection"]).reflection
    assert load_from_environment([]).shards == 9


def test_a_wrong_command_line_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_from_environment(["--shards", "0"])
    assert caught.value.code == 2
    assert "shards: 0 is not 1 to 1024 (from --shards)" in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_from_environment(["--help"])
    shown = capsys.readouterr().out
    assert [line.flag for line in OPTIONS if line.flag not in shown] == []


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "ms", "0"),
        (1, "ms", "1ms"),
        (1_500, "ms", "1500ms"),
        (90_000, "ms", "90s"),
        (1 << 30, "bytes", "1GiB"),
        (1_000, "", "1000"),
    ],
)
def test_numbers_are_shown_in_their_largest_whole_unit(number: int, unit: str, text: str) -> None:
    assert config.show(number, unit) == text


# --- peers -----------------------------------------------------------------------------------

TLS = {"peer_ca": "ca.pem", "peer_cert": "node.pem", "peer_key": "node.key"}


def test_peers_are_plain_and_local_unless_told_otherwise() -> None:
    settings = load({}, {})
    assert settings.peer_address == ("127.0.0.1", 7071)
    assert (settings.peer_advertise, settings.peer_tls) == ("", False)


def test_peers_with_certificates_may_listen_beyond_loopback() -> None:
    settings = load({"peer_listen": "10.0.0.1:7071", **TLS}, {})
    assert settings.peer_tls
    assert "no authentication" in refused(grpc_listen="10.0.0.1:7070", **TLS)
    assert load({"peer_listen": "10.0.0.1:7071", "insecure_listen": True}, {}).peer_tls is False


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"peer_listen": "10.0.0.1:7071"}, "peer_listen: 10.0.0.1 is not loopback"),
        ({"peer_listen": "here"}, "peer_listen: 'here' is not host:port"),
        ({"peer_listen": "127.0.0.1:7080"}, "peer_listen: 127.0.0.1:7080 is another listener's"),
        ({"peer_listen": "0.0.0.0:7071", **TLS}, "set peer_advertise"),
        ({"peer_listen": "[::]:7071", **TLS}, "set peer_advertise"),
        ({"grpc_advertise": "h:0"}, "grpc_advertise: h:0 is not host:port of this node"),
        ({"peer_advertise": "here"}, "peer_advertise: here is not host:port of this node"),
        ({"peer_advertise": "h:0"}, "peer_advertise: h:0 is not host:port of this node"),
        ({"peer_advertise": "0.0.0.0:7071"}, "peer_advertise: 0.0.0.0:7071 is not host:port"),
        ({"peer_ca": "ca.pem"}, "peer_ca: ca.pem does not stand alone"),
        ({"peer_cert": "a", "peer_key": "b"}, "peer_ca:  does not stand alone"),
    ],
)
def test_what_contradicts_itself_among_peers_is_refused(
    flags: dict[str, object], words: str
) -> None:
    assert words in refused(**flags)


def test_a_node_behind_a_wildcard_says_where_it_is() -> None:
    settings = load({"peer_listen": "0.0.0.0:7071", "peer_advertise": "node-1:7071", **TLS}, {})
    assert settings.peer_advertise == "node-1:7071"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({}, "127.0.0.1:7070"),
        ({"grpc_listen": "10.0.0.1:7070"}, "10.0.0.1:7070"),
        ({"grpc_listen": "0.0.0.0:7070", "peer_advertise": "node-1:7071"}, "node-1:7070"),
        ({"grpc_listen": "[::]:7070", "peer_advertise": "[fd00::1]:7071"}, "[fd00::1]:7070"),
        ({"grpc_listen": "10.0.0.1:7070", "peer_advertise": "node-1:7071"}, "10.0.0.1:7070"),
        ({"grpc_listen": "0.0.0.0:7070", "grpc_advertise": "api-1:443"}, "api-1:443"),
    ],
)
def test_clients_are_told_an_address_that_they_can_call(
    flags: dict[str, object], told: str
) -> None:
    assert load({**flags, "insecure_listen": True}, {}).grpc_told == told
