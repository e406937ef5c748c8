"""Floor 1. What an operator can say: one table of options.

The table is the class `Config`: each field has its type, default, limits, unit and words beside it. Flags, environment,
file and docs/CONFIG.md are made from it in `settings`.

A `Config` checks itself, so there is none that breaks a limit. Errors name the option and what is allowed, all of them
at once.

Must never import: any room but `errors`; no I/O.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from tickwheel.server.errors import InvalidArgument, Violation

ENV_PREFIX = "TICKWHEEL_"

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000

UNITS: Mapping[str, Mapping[str, int]] = {
    "bytes": {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": GIB * KIB},
    "ms": {"": 1, "ms": 1, "s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS},
    "": {"": 1},
}

Value = bool | int | str | tuple[str, ...]


class Rule(NamedTuple):
    """What the table says of an option beside its name, type and default."""

    section: str
    help: str
    low: int
    high: int
    choices: tuple[str, ...]


class Option(NamedTuple):
    """One line of the table. `unit` is `bytes`, `ms` or empty, read off the name."""

    name: str
    default: Value
    unit: str
    rule: Rule

    @property
    def flag(self) -> str:
        """Return the name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """Return the name in the environment."""
        return ENV_PREFIX + self.name.upper()

    @property
    def allowed(self) -> str:
        """Say in words which values are taken."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, int):
            return f"{show(self.rule.low, self.unit)} to {show(self.rule.high, self.unit)}"
        if isinstance(self.default, tuple):
            return LISTS[self.name].allowed
        return " or ".join(self.rule.choices) or "text"


def option(
    default: Value, section: str, help_text: str, /, *limits: int, choices: tuple[str, ...] = ()
) -> Any:
    """Declare a field of `Config`. `limits` are the least and the greatest value of a number."""
    low, high = limits or (0, 0)
    rule = Rule(section, help_text, low, high, choices)
    return dataclasses.field(default=default, metadata={"default": default, "rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one node. Raises InvalidArgument when they break a limit or contradict each other."""

    # fmt: off
    data_dir: str = option("./tickwheel-data", "Node",
        "Directory of the journal and the stores; one process owns it.")
    shards: int = option(64, "Node",
        "How many shards. Fixed when the data directory is created.", 1, 1_024)
    backup_dir: str = option("", "Node",
        "Directory of this machine below which `tickwheel backup` makes its own. Empty: no backups.")
    drain_timeout_ms: int = option(10 * SECOND_MS, "Node",
        "How long a stop waits for requests in flight.", 0, 10 * MINUTE_MS)

    grpc_listen: str = option("127.0.0.1:7070", "Listeners",
        "Where the gRPC API listens, host:port; port 0 takes a free one.")
    http_listen: str = option("127.0.0.1:7080", "Listeners",
        "Where metrics and health listen, host:port; port 0 takes a free one.")
    peer_listen: str = option("127.0.0.1:7071", "Listeners",
        "Where other nodes of the cluster reach this one, host:port; port 0 takes a free one.")
    insecure_listen: bool = option(False, "Listeners",
        "Allow listeners beyond loopback. There is no authentication yet: whoever reaches the port controls every job.")
    reflection: bool = option(False, "Listeners",
        "Answer gRPC server reflection.")

    grpc_advertise: str = option("", "Peers",
        "The host:port at which clients of a cluster are told to call this node; empty: that of grpc_listen, or its port "
        "at peer_advertise's host where grpc_listen names no address.")
    peer_advertise: str = option("", "Peers",
        "The host:port that other nodes are told; empty: that of peer_listen.")
    peer_ca: str = option("", "Peers",
        "PEM file of the authority that signs the nodes' certificates; with peer_cert and peer_key all traffic between "
        "nodes is mutual TLS, empty: plain.")
    peer_cert: str = option("", "Peers",
        "PEM file of this node's certificate, for the DNS name tickwheel-peer.")
    peer_key: str = option("", "Peers",
        "PEM file of its key.")
    snapshot_bytes_per_s: int = option(0, "Peers",
        "How fast copies of shards are sent to other nodes, all together; 0 sets no limit.", 0, 100 * GIB)

    segment_bytes: int = option(64 * MIB, "Journal",
        "Size of one journal segment; a multiple of 4KiB.", MIB, 4 * GIB)
    wal_queue_bytes: int = option(64 * MIB, "Journal",
        "What may wait for the disk; beyond it calls are refused for a moment.", MIB, 4 * GIB)
    wal_low_water_bytes: int = option(GIB, "Journal",
        "With less free disk than this, creates are refused, so that outcomes still fit.", 0, 1_024 * GIB)

    table_bytes_max: int = option(512 * MIB, "Store",
        "Memory for changes that SQLite has not taken yet; at 80 % creates wait, at 100 % the node is unready.",
        MIB, 256 * GIB)
    spec_cache_bytes: int = option(256 * MIB, "Store",
        "Memory for the specs of jobs that are due soon.", MIB, 256 * GIB)
    flush_interval_ms: int = option(SECOND_MS, "Store",
        "How often changes go to SQLite; lists and counts are at most this old.", 10, MINUTE_MS)
    checkpoint_interval_ms: int = option(30 * SECOND_MS, "Store",
        "How often SQLite is made durable, so that journal segments can go.", 10, HOUR_MS)
    history_ms: int = option(30 * DAY_MS, "Store",
        "How long ended executions are kept, by whole days, whatever a job's retention says.", DAY_MS, 3_650 * DAY_MS)

    wheel_horizon_ms: int = option(15 * MINUTE_MS, "Firing",
        "How far ahead the timing wheel is filled.", 10 * SECOND_MS, DAY_MS)
    wheel_entries_max: int = option(1_000_000, "Firing",
        "Entries of all wheels together; a busier window is made shorter.", 1_000, 100_000_000)
    prefetch_ms: int = option(2 * SECOND_MS, "Firing",
        "How long before its due time a job's spec is read.", 10, 5 * MINUTE_MS)
    queue_commands_max: int = option(100_000, "Firing",
        "Commands that may wait; beyond it calls get RESOURCE_EXHAUSTED.", 1, 10_000_000)

    dispatch_concurrency: int = option(1_024, "Dispatch",
        "Requests in flight to all targets.", 1, 65_536)
    dispatch_concurrency_per_target: int = option(256, "Dispatch",
        "Requests in flight to one target (scheme, host and port).", 1, 65_536)
    dispatch_queue_max: int = option(20_000, "Dispatch",
        "Due requests that may wait for their turn; beyond it they stay in the wheel.", 1, 10_000_000)
    allow_private_targets: tuple[str, ...] = option(("127.0.0.0/8", "::1/128"), "Dispatch",
        "Networks that jobs may call although they are private. Cloud metadata services stay refused. Empty: none.")

    etcd: tuple[str, ...] = option((), "Cluster",
        "Endpoints of etcd. Empty: this node is alone, and leads every shard.")
    cluster: str = option("default", "Cluster",
        "Name of the cluster: keys in etcd lie below /tickwheel/<name>/.")
    etcd_ttl_ms: int = option(3 * SECOND_MS, "Cluster",
        "Lease of this node in etcd: how long a dead node may go unnoticed at most.", 2 * SECOND_MS, MINUTE_MS)
    etcd_ca: str = option("", "Cluster",
        "File with the certificates of etcd's authority; TLS is used when it is set.")
    etcd_cert: str = option("", "Cluster",
        "File with this node's certificate for etcd.")
    etcd_key: str = option("", "Cluster",
        "File with its key.")
    etcd_user: str = option("", "Cluster",
        "User of etcd.")
    etcd_password_file: str = option("", "Cluster",
        "File with that user's password.")
    host: str = option("", "Cluster",
        "The machine; two copies of a shard never share one. Empty: the host's name.")
    zone: str = option("", "Cluster",
        "The failure domain above the machine, such as a rack or a zone.")
    replicas: int = option(3, "Cluster",
        "Copies of each shard. Fixed when the cluster is made: the first node decides.", 1, 7)
    min_copies: int = option(2, "Cluster",
        "Copies that a change of a client must have; with fewer voters it is refused. Outcomes go on.", 1, 7)
    replace_ms: int = option(5 * MINUTE_MS, "Cluster",
        "How long a node may be gone before a spare host takes its copies.", SECOND_MS, DAY_MS)
    shrink_ms: int = option(MINUTE_MS, "Cluster",
        "Without a spare: how long before the copies of a node that is gone do not count any more.", SECOND_MS, DAY_MS)
    tail_bytes: int = option(64 * MIB, "Cluster",
        "Memory for log entries that a follower may still lack; one that is further behind takes a snapshot.",
        MIB, 16 * GIB)

    watch_bytes: int = option(16 * MIB, "Watches",
        "Memory for what happened to executions in the last minute, so that a watch can go on after a break; the oldest "
        "goes first.", MIB, 16 * GIB)

    log_format: str = option("text", "Logs",
        "How a line is written.", choices=("text", "json"))
    log_level: str = option("info", "Logs",
        "What is written.", choices=("debug", "info", "warning", "error"))
    # fmt: on

    def __post_init__(self) -> None:
        """Hold every limit and relation."""
        violations = [v for line in OPTIONS for v in _check(line, getattr(self, line.name))]
        violations = violations or _relations(self)
        if violations:
            raise InvalidArgument.of(violations)

    @property
    def grpc_address(self) -> tuple[str, int]:
        """Return host and port of the gRPC API."""
        return parse_address(self.grpc_listen)

    @property
    def grpc_told(self) -> str:
        """Return the host:port that clients of a cluster are told."""
        if self.grpc_advertise or not self.peer_advertise or not _is_wildcard(self.grpc_listen):
            return self.grpc_advertise or self.grpc_listen
        return f"{self.peer_advertise.rpartition(':')[0]}:{self.grpc_address[1]}"

    @property
    def http_address(self) -> tuple[str, int]:
        """Return host and port of metrics and health."""
        return parse_address(self.http_listen)

    @property
    def peer_address(self) -> tuple[str, int]:
        """Return host and port of the peers' listener."""
        return parse_address(self.peer_listen)

    @property
    def peer_tls(self) -> bool:
        """Return whether nodes prove to each other who they are."""
        return bool(self.peer_ca)


def _unit(name: str) -> str:
    if name.endswith("_ms"):
        return "ms"
    return "bytes" if "_bytes" in name else ""


OPTIONS: tuple[Option, ...] = tuple(
    Option(field.name, field.metadata["default"], _unit(field.name), field.metadata["rule"])
    for field in dataclasses.fields(Config)
)
BY_NAME: Mapping[str, Option] = {line.name: line for line in OPTIONS}


# --- checks ----------------------------------------------------------------------------------


def parse_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65_535:  # noqa: PLR2004 - the greatest port
        raise ValueError(f"{text!r} is not host:port")
    return match[1] or match[2], int(match[3])


def is_loopback(host: str) -> bool:
    """True for `localhost` and for addresses that no other machine reaches."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check(line: Option, value: Value) -> list[Violation]:
    if type(value) is not type(line.default):
        return [Violation(line.name, f"{value!r} is not {line.allowed}")]
    if isinstance(value, tuple):
        kind = LISTS[line.name]
        return [
            Violation(line.name, f"{item!r} is not {kind.example}")
            for item in value
            if not kind.fits(item)
        ]
    if isinstance(value, str):
        fits = (bool(value) or not line.default) and (
            not line.rule.choices or value in line.rule.choices
        )
    else:
        fits = isinstance(value, bool) or line.rule.low <= value <= line.rule.high
    return [] if fits else [Violation(line.name, f"{value!r} is not {line.allowed}")]


def _is_network(cidr: str) -> bool:
    try:
        ip_network(cidr)
    except ValueError:
        return False
    return True


def _is_endpoint(text: str) -> bool:
    try:
        parse_address(text.removeprefix("http://").removeprefix("https://"))
    except ValueError:
        return False
    return True


class ListKind(NamedTuple):
    """What the items of a list option are."""

    allowed: str
    example: str
    fits: Callable[[str], bool]


LISTS: Mapping[str, ListKind] = {
    "allow_private_targets": ListKind(
        "networks in CIDR form, comma-separated", "a network such as 10.0.0.0/8", _is_network
    ),
    "etcd": ListKind("host:port or https://host:port, comma-separated", "host:port", _is_endpoint),
}


def _relations(config: Config) -> list[Violation]:
    found = [
        v
        for name in ("grpc_listen", "http_listen", "peer_listen")
        for v in _check_listener(config, name)
    ]
    broken = [
        *_shared_listeners(config),
        *_peer_relations(config),
        ("segment_bytes", config.segment_bytes % (4 * KIB) != 0, "is not a multiple of 4KiB"),
        (
            "dispatch_concurrency_per_target",
            config.dispatch_concurrency_per_target > config.dispatch_concurrency,
            f"is more than dispatch_concurrency ({config.dispatch_concurrency})",
        ),
        (
            "prefetch_ms",
            config.prefetch_ms > config.wheel_horizon_ms,
            f"is more than wheel_horizon_ms ({config.wheel_horizon_ms})",
        ),
        (
            "min_copies",
            bool(config.etcd) and config.min_copies > config.replicas,
            f"is more than replicas ({config.replicas})",
        ),
        (
            "checkpoint_interval_ms",
            config.checkpoint_interval_ms < config.flush_interval_ms,
            f"is less than flush_interval_ms ({config.flush_interval_ms})",
        ),
    ]
    found += [
        Violation(name, f"{getattr(config, name)} {words}")
        for name, wrong, words in broken
        if wrong
    ]
    return found


def _shared_listeners(config: Config) -> list[tuple[str, bool, str]]:
    grpc, http, peer = config.grpc_listen, config.http_listen, config.peer_listen
    fixed = {address for address in (grpc, http, peer) if not address.endswith(":0")}
    return [
        ("http_listen", http in fixed and http == grpc, "is the gRPC listener's address too"),
        (
            "peer_listen",
            peer in fixed and peer in {grpc, http},
            "is another listener's address too",
        ),
    ]


def _peer_relations(config: Config) -> list[tuple[str, bool, str]]:
    files = (config.peer_ca, config.peer_cert, config.peer_key)
    return [
        (
            "peer_ca",
            any(files) != all(files),
            "does not stand alone: peer_ca, peer_cert and peer_key go together",
        ),
        (
            "grpc_advertise",
            bool(config.grpc_advertise) and not _is_reachable(config.grpc_advertise),
            "is not host:port of this node",
        ),
        (
            "peer_advertise",
            bool(config.peer_advertise) and not _is_reachable(config.peer_advertise),
            "is not host:port of this node",
        ),
        (
            "peer_listen",
            not config.peer_advertise and _is_wildcard(config.peer_listen),
            "names no address that other nodes could call; set peer_advertise",
        ),
    ]


def _is_reachable(text: str) -> bool:
    try:
        return parse_address(text)[1] != 0 and not _is_wildcard(text)
    except ValueError:
        return False


def _is_wildcard(text: str) -> bool:
    try:
        return ip_address(parse_address(text)[0]).is_unspecified
    except ValueError:
        return False


def _check_listener(config: Config, name: str) -> list[Violation]:
    try:
        host, _ = parse_address(getattr(config, name))
    except ValueError as error:
        return [Violation(name, f"{error}")]
    proven = name == "peer_listen" and config.peer_tls
    if config.insecure_listen or proven or is_loopback(host):
        return []
    words = f"{host} is not loopback and there is no authentication yet; insecure_listen allows it"
    return [Violation(name, words)]


def show(number: int, unit: str) -> str:
    """Write a number in the largest unit that leaves it whole."""
    suffix, factor = max(
        ((s, f) for s, f in UNITS[unit].items() if number and number % f == 0),
        key=lambda pair: (pair[1], pair[0]),
        default=("", 1),
    )
    return f"{number // factor}{suffix}"
