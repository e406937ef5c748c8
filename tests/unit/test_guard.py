"""The guard: every row of its tables, both edges of each, and the forms that try to slip past."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.dispatch.guard import BAD_PORTS, DENIED, METADATA, Blocked, Guard

EVERYTHING = Guard(allow=["0.0.0.0/0", "::/0"], deny_ports=())


def reason(guard: Guard, ip: str, port: int = 443) -> str:
    """Why the guard refuses the address; empty when it lets it pass."""
    try:
        guard.check_address(ip, port)
    except Blocked as blocked:
        return blocked.reason
    return ""


def reasons(url: str, guard: Guard | None = None) -> list[str]:
    return [violation.reason for violation in (guard or Guard()).check_url(url)]


# --- addresses -------------------------------------------------------------------------------

# Written out a second time, from the registries of IANA and the clouds' own pages: a row that is lost from the table is found here.
ROWS = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24
192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
::/128 ::1/128 ::/96 fe80::/10 fec0::/10 fc00::/7 ff00::/8 100::/64 2001::/23 2001:db8::/32 3fff::/20 5f00::/16
64:ff9b::/96 64:ff9b:1::/48 2002::/16
""".split()  # noqa: SIM905 - easier to compare with the list


@pytest.mark.parametrize("cidr", ROWS)
def test_both_edges_of_every_denied_range(cidr: str) -> None:
    network = ip_network(cidr)
    assert reason(Guard(), str(network[0])) != ""
    assert reason(Guard(), str(network[-1])) != ""


@pytest.mark.parametrize("network", DENIED, ids=str)
def test_a_denied_range_reaches_no_further(network: object) -> None:
    """The neighbours of a range pass, unless they lie in another row."""
    denied = ip_network(str(network))
    low, high = int(denied[0]) - 1, int(denied[-1]) + 1
    width = IPv4Address if denied.version == 4 else IPv6Address
    for value in (low, high):
        if 0 <= value < 2**denied.max_prefixlen:
            inside = any(width(value) in other for other in DENIED)
            mapped = denied.version == 6 and width(value) in ip_network("::ffff:0:0/96")
            assert mapped or (reason(Guard(), str(width(value))) == "") is not inside


@pytest.mark.parametrize("ip", ["1.1.1.1", "93.184.216.34", "172.32.0.0", "2606:4700::1111"])
def test_public_addresses_pass(ip: str) -> None:
    assert reason(Guard(), ip) == ""


@pytest.mark.parametrize("ip", sorted(map(str, METADATA)))
def test_metadata_is_refused_even_when_everything_is_allowed(ip: str) -> None:
    assert reason(EVERYTHING, ip) == "metadata address"


@pytest.mark.parametrize(
    "ip",
    [
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::",
        f"2001:0:808:808:0:0:{0xA9FE ^ 0xFFFF:x}:{0xA9FE ^ 0xFFFF:x}",
    ],
)
def test_metadata_inside_another_address_is_found(ip: str) -> None:
    assert reason(EVERYTHING, ip) == "metadata address"


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("::ffff:127.0.0.1", "private address"),
        ("::ffff:7f00:1", "private address"),
        ("::ffff:8.8.8.8", ""),
        ("::127.0.0.1", "private address"),
        ("64:ff9b::8.8.8.8", "private address"),
        ("fe80::1%eth0", "private address"),
        ("not an address", "malformed address"),
        ("", "malformed address"),
    ],
)
def test_forms(ip: str, expected: str) -> None:
    assert reason(Guard(), ip) == expected


def test_allowed_ranges_pass_and_no_more() -> None:
    guard = Guard(allow=["127.0.0.0/8", "10.1.0.0/16", "::1/128"])
    assert reason(guard, "127.0.0.1") == ""
    assert reason(guard, "::ffff:127.0.0.1") == ""
    assert reason(guard, "::1") == ""
    assert reason(guard, "10.1.2.3") == ""
    assert reason(guard, "10.2.0.1") == "private address"


def test_an_allowed_tunnel_does_not_allow_what_it_carries() -> None:
    guard = Guard(allow=["64:ff9b::/96"])
    assert reason(guard, "64:ff9b::8.8.8.8") == ""
    assert reason(guard, "64:ff9b::10.0.0.1") == "private address"


def test_a_malformed_cidr_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        Guard(allow=["10.0.0.1/8"])


@pytest.mark.parametrize("own", ["127.0.0.1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("ip", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_our_own_addresses_are_refused_even_when_allowed(own: str, ip: str) -> None:
    port = 7071
    guard = Guard(allow=["127.0.0.0/8"], own=[(own, port)])
    assert reason(guard, ip, port) == "own address"
    assert reason(guard, ip, port + 1) == ""
    assert reason(guard, "127.0.0.2", port) == ""


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_a_listener_on_all_addresses_is_ours_on_loopback(wildcard: str) -> None:
    guard = Guard(allow=["0.0.0.0/0", "::/0"], own=[(wildcard, 7070)])
    for ip in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::"):
        assert reason(guard, ip, 7070) == "own address"
    assert reason(guard, "8.8.8.8", 7070) == ""


def test_ports() -> None:
    for port in (25, 6379, 0, 65_536, -1):
        assert reason(Guard(), "1.1.1.1", port) == "port not allowed"
    assert reason(Guard(deny_ports=[8080]), "1.1.1.1", 25) == ""
    assert reason(Guard(deny_ports=[8080]), "1.1.1.1", 8080) == "port not allowed"
    assert BAD_PORTS.isdisjoint({80, 443, 8080, 8443, 3000, 5000, 8000})


# --- URLs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com/a?b=c&d=%20~'()*!$,;:@",
        "HTTPS://EXAMPLE.com.:8443/",
        "http://xn--bcher-kva.example/",
        "http://a_b.example?x",
        "http://1.1.1.1:81/",
        "http://[2606:4700::1111]:8080/x",
        "http://1a/",
        "http://a." + "b" * 63 + "/",
        "http://e/" + "x" * 2074,
    ],
)
def test_urls_that_pass(url: str) -> None:
    assert reasons(url) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "URL_INVALID"),
        ("example.com/x", "URL_INVALID"),
        ("/x", "URL_INVALID"),
        ("//example.com", "URL_INVALID"),
        ("http:example.com", "URL_INVALID"),
        ("mailto:a", "URL_INVALID"),
        ("http://e/" + "x" * 2075, "URL_INVALID"),
        ("http://e/a b", "URL_INVALID"),
        ("http://e/\r\nX: y", "URL_INVALID"),
        ("http://e/\n", "URL_INVALID"),
        ("http://e\\@f/", "URL_INVALID"),
        ("http://bücher.example/", "URL_INVALID"),
        ("http://e。f/", "URL_INVALID"),
        ("http://e/%zz", "URL_INVALID"),
        ("http://e/%", "URL_INVALID"),
        ("ftp://example.com/", "URL_SCHEME"),
        ("file://localhost.example/etc/passwd", "URL_SCHEME"),
        ("gopher://example.com/", "URL_SCHEME"),
        ("http://example.com/#x", "URL_FRAGMENT"),
        ("http://example.com#@127.0.0.1/", "URL_FRAGMENT"),
        ("http://user@example.com/", "URL_USERINFO"),
        ("http://user:pw@example.com/", "URL_USERINFO"),
        ("http://example.com:80@127.0.0.1/", "URL_USERINFO"),
        ("http:///x", "URL_HOST"),
        ("http://:80/", "URL_HOST"),
        ("http://?x", "URL_HOST"),
        ("http://example.com:/", "URL_HOST"),
        ("http://example.com:0/", "URL_HOST"),
        ("http://example.com:65536/", "URL_HOST"),
        ("http://example.com:8o/", "URL_HOST"),
        ("http://example.com:80:80/", "URL_HOST"),
        ("http://a..b/", "URL_HOST"),
        ("http://-a/", "URL_HOST"),
        ("http://a%2eb/", "URL_HOST"),
        ("http://" + "b" * 64 + "/", "URL_HOST"),
        ("http://" + "a." * 126 + "ab/", "URL_HOST"),
        ("http://2130706433/", "URL_HOST"),
        ("http://0177.0.0.1/", "URL_HOST"),
        ("http://0x7f.0.0.1/", "URL_HOST"),
        ("http://0x7f000001/", "URL_HOST"),
        ("http://127.1/", "URL_HOST"),
        ("http://1.1.1.1./", "URL_HOST"),
        ("http://1.1.1.256/", "URL_HOST"),
        ("http://01.1.1.1/", "URL_HOST"),
        ("http://1.1.1.1.1/", "URL_HOST"),
        ("http://a.0x/", "URL_HOST"),
        ("http://[::1/", "URL_HOST"),
        ("http://[::1]x/", "URL_HOST"),
        ("http://[1.2.3.4]/", "URL_HOST"),
        ("http://[fe80::1%25eth0]/", "URL_HOST"),
        ("http://[v1.x]/", "URL_HOST"),
        ("http://::1/", "URL_HOST"),
        ("http://127.0.0.1/", "TARGET_BLOCKED"),
        ("http://169.254.169.254/latest/meta-data", "TARGET_BLOCKED"),
        ("http://[::1]/", "TARGET_BLOCKED"),
        ("http://[::ffff:10.0.0.1]/", "TARGET_BLOCKED"),
        ("http://[64:ff9b::1.1.1.1]/", "TARGET_BLOCKED"),
        ("http://localhost/", "TARGET_BLOCKED"),
        ("http://LOCALHOST./", "TARGET_BLOCKED"),
        ("http://a.localhost:81/", "TARGET_BLOCKED"),
        ("http://example.com:25/", "TARGET_BLOCKED"),
        ("https://1.1.1.1:22/", "TARGET_BLOCKED"),
    ],
)
def test_urls_that_are_refused(url: str, expected: str) -> None:
    assert reasons(url) == [expected]


def test_several_faults_are_all_named() -> None:
    assert reasons("ftp://u@example.com/#x") == ["URL_SCHEME", "URL_FRAGMENT", "URL_USERINFO"]


def test_the_field_is_named_as_the_caller_spells_it() -> None:
    assert Guard().check_url("x")[0].field == "http_target.url"
    assert Guard().check_url("x", "on_success.url")[0].field == "on_success.url"


def test_names_of_our_own_are_refused_at_admission() -> None:
    guard = Guard(own=[("Etcd-0.internal", 2379)])
    assert reasons("http://etcd-0.INTERNAL.:2379/v3", guard) == ["TARGET_BLOCKED"]
    assert reasons("http://etcd-0.internal/v3", guard) == []


def test_allowed_literals_pass() -> None:
    guard = Guard(allow=["127.0.0.0/8"])
    assert reasons("http://127.0.0.1:8080/", guard) == []
    assert reasons("http://localhost:8080/", guard) == []


@given(st.text(max_size=60) | st.text(alphabet="http:/@[]#?.%0x127a\\", max_size=40))
def test_no_text_makes_the_check_fall_over(text: str) -> None:
    Guard().check_url(text)
    Guard().check_url("http://" + text)


@given(st.ip_addresses())
def test_no_address_makes_the_check_fall_over(address: IPv4Address | IPv6Address) -> None:
    reason(Guard(), str(address))


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_what_it_is(address: IPv4Address) -> None:
    assert reason(Guard(), f"::ffff:{address}") == reason(Guard(), str(address))
