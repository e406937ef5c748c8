"""Floor 3, pure. The guard against requests into our own house (SSRF): which addresses a target may have.

Two places ask it, and only the second one protects:

    admission   check_url(url)           what the text alone shows; a clear answer for the user
    socket      check_address(ip, port)  every connection, after DNS; so rebinding and redirects gain nothing

The order of the rules for one address:

    1. cloud metadata services     always refused, no option opens them
    2. our own listeners, peers    always refused
    3. ports that speak no HTTP    refused
    4. `allow`                     the operator's CIDRs pass
    5. the deny table              refused; all else passes

An IPv6 address that carries an IPv4 address inside (mapped, NAT64, 6to4, Teredo) must pass as what it is and as what
it carries. The table is our own, not `ipaddress.is_global`: what that says differs between versions of Python
(CVE-2024-4032). Its rows are the special-purpose registries of IANA (RFC 6890 and its updates).

Must never import: asyncio, socket, a resolver, a clock.
"""

import re
from collections.abc import Iterator, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from tickwheel.server.errors import Violation

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_CHARS_MAX = 2083
HOST_CHARS_MAX = 253
PORT_MAX = 65_535
DEFAULT_PORTS = {"http": 80, "https": 443}

DENIED = tuple(
    ip_network(cidr)
    for cidr in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::/96",  # unspecified, loopback, and the old IPv4-compatible form
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local use
        "100::/64",  # discard
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, deprecated
        "ff00::/8",  # multicast
    )
)

METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, Google, DigitalOcean, Hetzner, Oracle
        "169.254.170.2",  # AWS ECS, credentials of tasks
        "169.254.170.23",  # AWS EKS, credentials of pods
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure, wire server: a public address
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS
        "fd20:ce::254",  # Google
    )
)

# fmt: off
BAD_PORTS = frozenset([  # the "bad ports" of the WHATWG Fetch standard
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    3306, 5432, 6379, 11211,  # stores that a request line could reach
])
# fmt: on

_MAPPED = ip_network("::ffff:0:0/96")
_NAT64 = ip_network("64:ff9b::/96")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>//)?(?P<authority>[^/?#]*)")
_URL_CHARS = re.compile(r"[!$-;=?-Z\[\]_a-z~#]*")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_V4 = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})(?:\.(?!$)|$)){4}")


class Blocked(Exception):
    """The guard refuses the address. `reason` is one of a few words, safe to show to the job's owner."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Guard:
    """The rules of one node.

    `allow` are CIDRs that the operator opens though the table denies them. `own` are (host, port) pairs that no target
    may name: our listeners, peers, etcd; a host is an address, a wildcard (`0.0.0.0`, `::`: every loopback address) or
    a name (compared at admission only: pass its addresses too). Raises ValueError for a malformed CIDR.
    """

    def __init__(
        self,
        allow: Sequence[str] = (),
        deny_ports: Sequence[int] | frozenset[int] = BAD_PORTS,
        own: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._allow = tuple(ip_network(cidr) for cidr in allow)
        self._deny_ports = frozenset(deny_ports)
        self._own = frozenset((_unwrap(_ip(host)) or host.lower(), port) for host, port in own)

    def check_address(self, ip: str, port: int) -> None:
        """Raise Blocked unless a connection to this address may be opened."""
        address = _ip(ip.partition("%")[0])
        if address is None:
            raise Blocked("malformed address")
        for each in _carried(address):
            self._check_one(each, port)

    def _check_one(self, address: Address, port: int) -> None:
        if address in METADATA:
            raise Blocked("metadata address")
        if self._is_own(address, port):
            raise Blocked("own address")
        if port in self._deny_ports or not 0 < port <= PORT_MAX:
            raise Blocked("port not allowed")
        if not _inside(address, self._allow) and _inside(address, DENIED):
            raise Blocked("private address")

    def _is_own(self, address: Address, port: int) -> bool:
        if (address, port) in self._own:
            return True
        near = address.is_loopback or address.is_unspecified
        return near and any((wildcard, port) in self._own for wildcard in _WILDCARDS)

    def check_url(self, url: str, field: str = "http_target.url") -> list[Violation]:
        """Everything that the text of a URL shows to be wrong; empty when it may be tried."""
        fault = _text_fault(url)
        if fault:
            return [Violation(field, fault, "URL_INVALID")]
        match = _URL.match(url)
        if match is None or match["slashes"] is None:
            return [Violation(field, "must be an absolute http or https URL", "URL_INVALID")]
        violations: list[Violation] = []
        scheme = match["scheme"].lower()
        if scheme not in DEFAULT_PORTS:
            violations.append(Violation(field, "scheme must be http or https", "URL_SCHEME"))
        if "#" in url:
            violations.append(Violation(field, "must have no fragment (#...)", "URL_FRAGMENT"))
        return violations + self._authority(match["authority"], scheme, field)

    def _authority(self, authority: str, scheme: str, field: str) -> list[Violation]:
        if "@" in authority:
            text = "must have no user or password; put credentials into a header"
            return [Violation(field, text, "URL_USERINFO")]
        host, port, fault = split_authority(authority, DEFAULT_PORTS.get(scheme, 80))
        fault = fault or _host_fault(host)
        if fault:
            return [Violation(field, fault, "URL_HOST")]
        try:
            self._check_host(host, port)
        except Blocked as blocked:
            return [Violation(field, f"is refused by the guard: {blocked}", "TARGET_BLOCKED")]
        return []

    def _check_host(self, host: str, port: int) -> None:
        if _ip(host) is not None:
            self.check_address(host, port)
            return
        name = host.lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            self.check_address("127.0.0.1", port)
        if port in self._deny_ports:
            raise Blocked("port not allowed")
        if (name, port) in self._own:
            raise Blocked("own address")


_WILDCARDS = (IPv4Address("0.0.0.0"), IPv6Address("::"))  # noqa: S104 - compared with, never bound


def split_authority(authority: str, default_port: int) -> tuple[str, int, str]:
    """(host, port, fault) of `host[:port]`; brackets of an IPv6 literal are taken off."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not _is_v6(host):
            return "", 0, "host is not a valid IPv6 address"
    else:
        host, colon, port_text = authority.partition(":")
        rest = colon + port_text
    if not rest:
        return host, default_port, ""
    port = rest[1:]
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= PORT_MAX:
        return "", 0, "port must be a number from 1 to 65535"
    return host, int(port), ""


def _text_fault(url: str) -> str:
    if len(url) > URL_CHARS_MAX:
        return f"must have at most {URL_CHARS_MAX} characters"
    if not _URL_CHARS.fullmatch(url):
        return 'must be ASCII without spaces or "<>\\^`{|}; percent-encode paths, write hosts as xn--...'
    if re.search(r"%(?![0-9A-Fa-f]{2})", url):
        return "has a % that is not followed by two hexadecimal digits"
    return ""


def _host_fault(host: str) -> str:
    """What is wrong with a host, as text. Numbers in any but the plain dotted form are refused, not interpreted."""
    if not host:
        return "must have a host"
    if _is_v6(host):
        return ""
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return "" if _is_v4(host) else "an IPv4 address must be four decimal numbers"
    if len(host) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        return "host is not a valid name"
    return ""


def _is_v4(text: str) -> bool:
    return _V4.fullmatch(text) is not None and _ip(text) is not None


def _is_v6(text: str) -> bool:
    return "%" not in text and isinstance(_ip(text), IPv6Address)


def _ip(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _unwrap(address: Address | None) -> Address | None:
    """An IPv4-mapped address is that IPv4 address: the kernel connects to it."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _carried(address: Address) -> Iterator[Address]:
    """Yield the address itself, then each IPv4 address that it carries inside."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address in _MAPPED:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
        return
    yield address
    if address in _NAT64:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _inside(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
