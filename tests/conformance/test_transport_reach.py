"""Where every transport may go, and whom it believes: guard, redirects, TLS. Against real servers on loopback."""

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.conformance.peers import (
    LAST,
    OK,
    TRANSPORTS,
    Answer,
    Peer,
    RawServer,
    failure,
    get,
    may,
    opened,
    run,
    says,
    serving,
)

from tickwheel.server.dispatch.guard import Guard
from tickwheel.server.dispatch.transport import (
    ErrorKind,
    Transport,
)

pytestmark = pytest.mark.parametrize("make", TRANSPORTS)

# --- the guard -------------------------------------------------------------------------------


class Names(AbstractResolver):
    """A resolver that gives one answer after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if not self.answers:
            raise OSError("no such name")
        return [
            ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=0)
            for ip in self.answers.pop(0)
        ]

    async def close(self) -> None: ...


ONE = Guard(allow=["127.0.0.1/32"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_the_guard_stands_at_the_socket(make: Callable[..., Transport], host: str) -> None:
    async def scenario() -> None:
        async with serving(says(OK)) as server, opened(make, guard=Guard()) as transport:
            url = f"http://{host}:{server.port}"
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)
            assert server.connections == 0

    run(scenario())


def test_a_name_that_resolves_anew_gains_nothing(make: Callable[..., Transport]) -> None:
    """DNS rebinding: first an allowed address, then a denied one."""

    async def scenario() -> None:
        answer = says(LAST, close=True)
        names = Names(["127.0.0.1"], ["127.0.0.2"], ["169.254.169.254"])
        async with (
            serving(answer) as server,
            opened(make, guard=ONE, resolver=names, dns_cache_s=0) as transport,
        ):
            url = f"http://rebind.example:{server.port}"
            assert (await transport.send(get(url), may)).status == 200
            await server.all_closed()
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)
            assert await failure(transport, get(url)) == (ErrorKind.DNS, False)
            assert server.connections == 1

    run(scenario())


def test_of_several_addresses_only_the_allowed_are_tried(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        names = Names(["10.0.0.1", "127.0.0.1"], ["10.0.0.1", "10.0.0.2"])
        options = {"guard": ONE, "resolver": names, "dns_cache_s": 0}
        async with serving(says(LAST, close=True)) as server, opened(make, **options) as transport:
            url = f"http://both.example:{server.port}"
            assert (await transport.send(get(url), may)).status == 200
            await server.all_closed()
            assert await failure(transport, get(url)) == (ErrorKind.BLOCKED, False)

    run(scenario())


def test_a_down_address_beside_a_denied_one_is_not_called_blocked(
    make: Callable[..., Transport],
) -> None:
    """Blocked ends the retries; a target that is merely down deserves them."""

    async def scenario() -> None:
        async with serving(says(OK)) as server:
            pass
        options = {"guard": ONE, "resolver": Names(["127.0.0.1", "10.0.0.1"])}
        async with opened(make, **options) as transport:
            url = f"http://both.example:{server.port}"
            assert await failure(transport, get(url)) == (ErrorKind.CONNECT, False)

    run(scenario())


# --- redirects -------------------------------------------------------------------------------


def redirects(status: int, location: str) -> Answer:
    async def answer(peer: Peer, request: bytes) -> None:
        if b" /end" in request.partition(b"\r\n")[0]:
            await peer.say(OK)
        else:
            line = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            await peer.say(line.encode())

    return answer


def test_redirects_are_not_followed_unless_asked(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(redirects(302, "/end")) as server, opened(make) as transport:
            assert (await transport.send(get(server.url), may)).status == 302
            assert len(server.requests) == 1

    run(scenario())


def test_a_redirect_is_followed_when_asked(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(redirects(307, "/end")) as server, opened(make) as transport:
            request = get(
                server.url + "/x",
                method="POST",
                body=b"b",
                max_redirects=1,
                headers=(("Authorization", "secret"),),
            )
            assert (await transport.send(request, may)).status == 200
            assert server.requests[1].startswith(b"POST /end ")
            assert server.requests[1].endswith(b"\r\n\r\nb")
            assert b"secret" in server.requests[1]

    run(scenario())


def test_a_redirect_elsewhere_leaves_the_users_headers_behind(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        async with (
            serving(says(OK)) as other,
            serving(redirects(302, f"{other.url}/end")) as server,
            opened(make) as transport,
        ):
            headers = (("X-Key", "secret"), ("webhook-id", "i"), ("Content-Type", "a/b"))
            request = get(server.url, method="POST", body=b"b", max_redirects=3, headers=headers)
            assert (await transport.send(request, may)).status == 200
            assert other.requests[0].startswith(b"GET /end ")
            assert b"webhook-id: i" in other.requests[0]
            assert b"secret" not in other.requests[0]
            assert b"Content-" not in other.requests[0]

    run(scenario())


def test_redirects_in_a_circle_end(make: Callable[..., Transport]) -> None:
    async def scenario() -> None:
        async with serving(redirects(302, "/again")) as server, opened(make) as transport:
            request = get(server.url, max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.TOO_MANY_REDIRECTS, True)
            assert len(server.requests) == 4

    run(scenario())


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/",
        "http://[fd00:ec2::254]/",
        "http://2130706433/",
        "http://user:pw@127.0.0.1/",
        "file:///etc/passwd",
        "http://[bad/",
    ],
)
def test_a_redirect_is_checked_as_the_first_url_was(
    make: Callable[..., Transport], location: str
) -> None:
    async def scenario() -> None:
        async with serving(redirects(302, location)) as server, opened(make) as transport:
            request = get(server.url, max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.BLOCKED, True)

    run(scenario())


def test_a_redirect_to_a_denied_name_is_blocked_at_the_socket(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        names = Names(["127.0.0.2"])
        answer = redirects(302, "http://inner.example/end")
        options = {"guard": ONE, "resolver": names}
        async with serving(answer) as server, opened(make, **options) as transport:
            request = get(server.url, max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.BLOCKED, True)

    run(scenario())


def test_a_gate_that_closes_after_the_first_request_ends_the_redirects(
    make: Callable[..., Transport],
) -> None:
    async def scenario() -> None:
        answers = iter([True, False])

        async def gate() -> bool:
            return next(answers)

        async with serving(redirects(302, "/end")) as server, opened(make) as transport:
            response = await transport.send(get(server.url, max_redirects=3), gate)
            assert response.status == 302
            assert len(server.requests) == 1

    run(scenario())


# --- TLS -------------------------------------------------------------------------------------

openssl = shutil.which("openssl")


def _make(directory: Path, *arguments: str) -> None:
    assert openssl is not None
    subprocess.run([openssl, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of it for localhost: a good one, an expired one."""
    if openssl is None:
        pytest.skip("makes its certificates with the openssl command, which is not here")
    directory = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _make(directory, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA",
          "-days", "2", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    (directory / "san").write_text("subjectAltName=DNS:localhost\n")
    _make(
        directory,
        "req",
        *key,
        "-keyout",
        "key.pem",
        "-out",
        "request.pem",
        "-subj",
        "/CN=localhost",
    )
    sign = (
        "x509",
        "-req",
        "-in",
        "request.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-extfile",
        "san",
    )
    _make(directory, *sign, "-CAcreateserial", "-out", "good.pem", "-days", "2")
    _make(directory, *sign, "-CAcreateserial", "-out", "expired.pem", "-days", "-1")
    return directory


def _context(certificates: Path, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / name, certificates / "key.pem")
    return context


@pytest.mark.parametrize(
    ("certificate", "host", "trusted", "expected"),
    [
        ("good.pem", "localhost", True, None),
        ("good.pem", "127.0.0.1", True, (ErrorKind.TLS, False)),
        ("good.pem", "localhost", False, (ErrorKind.TLS, False)),
        ("expired.pem", "localhost", True, (ErrorKind.TLS, False)),
    ],
)
def test_certificates_are_verified(
    make: Callable[..., Transport],
    certificates: Path,
    certificate: str,
    host: str,
    trusted: bool,
    expected: tuple[ErrorKind, bool] | None,
) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {"ca_file": str(certificates / "ca.pem")} if trusted else {}
        context = _context(certificates, certificate)
        async with serving(says(OK), ssl=context) as server, opened(make, **options) as transport:
            request = get(f"https://{host}:{server.port}", method="POST", body=b"b")
            if expected is None:
                assert (await transport.send(request, may)).body == b"ok"
                assert (await transport.send(request, may)).body == b"ok"
                assert server.connections == 1
            else:
                assert await failure(transport, request) == expected

    run(scenario())


def test_tls_with_a_server_that_speaks_none(make: Callable[..., Transport]) -> None:
    async def answer(peer: Peer, _: bytes) -> None:
        await peer.reader.read(1)
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def scenario() -> None:
        async with serving(answer, RawServer) as server, opened(make) as transport:
            kind, sent = await failure(transport, get(f"https://127.0.0.1:{server.port}"))
            assert kind in {ErrorKind.TLS, ErrorKind.CONNECT}
            assert not sent

    run(scenario())


def test_a_redirect_out_of_tls_is_refused(
    make: Callable[..., Transport], certificates: Path
) -> None:
    async def scenario() -> None:
        context = _context(certificates, "good.pem")
        async with (
            serving(says(OK)) as plain,
            serving(redirects(302, f"{plain.url}/end"), ssl=context) as server,
            opened(make, ca_file=str(certificates / "ca.pem")) as transport,
        ):
            request = get(f"https://localhost:{server.port}", max_redirects=3)
            assert await failure(transport, request) == (ErrorKind.BLOCKED, True)
            assert plain.requests == []

    run(scenario())
