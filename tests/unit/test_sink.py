"""The recording target: what it answers is a function of the path, and what it records is what was sent."""

import http.client
import socket
import zlib
from collections.abc import Iterator

import pytest
from bench.node import Sink
from bench.sink import Answer, behave, response


@pytest.mark.parametrize(
    ("target", "earlier", "expected"),
    [
        ("/ok", 5, Answer(200)),
        ("/status/404", 0, Answer(404)),
        ("/slow?ms=250", 0, Answer(200, 250)),
        ("/fail?times=2", 1, Answer(503)),
        ("/fail?times=2", 2, Answer(200)),
        ("/retry-after?s=3", 0, Answer(503, headers=b"Retry-After: 3\r\n")),
        ("/retry-after?s=3", 1, Answer(200)),
        ("/gone", 0, Answer(410)),
        ("/hang", 0, Answer(0)),
        ("/close", 0, Answer(0, cut=True)),
        ("/nothing", 0, Answer(404)),
    ],
)
def test_the_path_says_what_happens(target: str, earlier: int, expected: Answer) -> None:
    assert behave(target, earlier) == expected


def test_a_response_states_its_length() -> None:
    assert response(200, b"hello").endswith(b"Content-Length: 5\r\n\r\nhello")


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


def test_a_request_is_recorded_as_it_was_sent(sink: Sink) -> None:
    sink.reset()
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=10)
    headers = {
        "webhook-id": "u_1", "Tickwheel-Job": "namespaces/d/jobs/j",
        "Tickwheel-Scheduled-Time": "1700000000000", "Tickwheel-Attempt": "2", "Tickwheel-Epoch": "7",
    }  # fmt: skip
    for status in (503, 200):
        connection.request("PUT", "/fail?times=1", b"body", headers)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
    connection.close()
    first, second = sink.records()
    assert first[:5] == ("u_1", "namespaces/d/jobs/j", "1700000000000", 2, 7)
    assert first[6:] == ("/fail?times=1", "PUT", 503, 0, zlib.crc32(b"body"))
    assert first.arrival_us <= second.arrival_us
    assert sink.records(1) == [second]
    assert sink.count() == 2


def test_a_connection_can_be_cut_without_an_answer(sink: Sink) -> None:
    sink.reset()
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=10)
    connection.request("POST", "/close", b"")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        connection.getresponse()
    connection.close()
    assert sink.records()[0].status == 0


def test_what_is_no_http_is_refused_and_not_recorded(sink: Sink) -> None:
    sink.reset()
    with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as raw:
        raw.sendall(b"NONSENSE\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
    assert sink.count() == 0
