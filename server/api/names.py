"""Floor 5. Resource names: taken apart, checked, and made where the user gave none.

    namespaces/{namespace}/jobs/{job}/executions/{execution}

A job that its creator did not name is called after its request_id, so that the same request, repeated, meets the same
shard and the same job:

    "r-" + base32(sha256("{namespace}/{request_id}")[:20]), lower case            34 characters, 160 bits

Two requests of one namespace would have to collide in 160 bits to meet; the digest of the content would still tell
them apart, and the second be refused. Without a request_id the 160 bits are random.

Must never import: rooms below but `errors`.
"""

import re
import secrets
from functools import lru_cache
from hashlib import sha256
from typing import Final

from tickwheel.server.api.limits import NAME_CHARS_MAX, REQUEST_ID_CHARS_MAX
from tickwheel.server.errors import InvalidArgument, Violation

_PART: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?")
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_CHARS_MAX}}}")
_GENERATED_BYTES: Final = 20
_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648, in lower case
_PAIRS: Final = tuple(a + b for a in _BASE32 for b in _BASE32)
_SHIFTS: Final = tuple(range(_GENERATED_BYTES * 8 - 10, -1, -10))
"""Ten bits are two letters: the standard library's encoder takes four times as long, and one runs for each job."""
_GRAMMAR: Final = f"1 to {NAME_CHARS_MAX} of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit"


def valid_part(text: str) -> bool:
    """True when `text` may be the name of a namespace or a job."""
    return _PART.fullmatch(text) is not None


@lru_cache(1_024)
def parse_namespace(name: str, field: str = "parent") -> str:
    """The namespace of `namespaces/{namespace}`. Raises InvalidArgument."""
    collection, _, namespace = name.partition("/")
    if collection != "namespaces" or not valid_part(namespace):
        raise _malformed(field, name, "namespaces/{namespace}")
    return namespace


def parse_namespaces(name: str) -> str:
    """The namespace to list, or "" for `namespaces/-`: all of them. Raises InvalidArgument."""
    return "" if name == "namespaces/-" else parse_namespace(name)


def parse_jobs(name: str) -> tuple[str, str]:
    """(namespace, job) whose executions to list; job "" for `jobs/-`: all of them. Raises InvalidArgument."""
    if name.endswith("/jobs/-"):
        return parse_namespace(name.removesuffix("/jobs/-")), ""
    return parse_job(name, "parent")


def parse_job(name: str, field: str = "name") -> tuple[str, str]:
    """(namespace, job) of `namespaces/{namespace}/jobs/{job}`. Raises InvalidArgument."""
    match name.split("/"):
        case ["namespaces", namespace, "jobs", job] if valid_part(namespace) and valid_part(job):
            return namespace, job
        case _:
            raise _malformed(field, name, "namespaces/{namespace}/jobs/{job}")


def parse_execution(name: str, field: str = "name") -> tuple[str, str, str]:
    """(namespace, job, execution) of an execution's name. Raises InvalidArgument."""
    job, found, execution = name.partition("/executions/")
    if not found or not execution or "/" in execution:
        raise _malformed(field, name, "namespaces/{namespace}/jobs/{job}/executions/{execution}")
    return *parse_job(job, field), execution


def job_name(namespace: str, job: str) -> str:
    """`namespaces/{namespace}/jobs/{job}`."""
    return f"namespaces/{namespace}/jobs/{job}"


def execution_name(namespace: str, job: str, execution: str) -> str:
    """`namespaces/{namespace}/jobs/{job}/executions/{execution}`."""
    return f"namespaces/{namespace}/jobs/{job}/executions/{execution}"


def check_job_id(job_id: str) -> None:
    """Raise InvalidArgument unless it may name a job."""
    if _PART.fullmatch(job_id) is None:
        raise InvalidArgument.of([bad_job_id()])


def bad_job_id() -> Violation:
    """What is wrong with a job_id that may not name a job."""
    return Violation("job_id", f"must be {_GRAMMAR}", "JOB_ID_INVALID")


def check_request_id(request_id: str) -> None:
    """Raise InvalidArgument unless it is made as the API says. Empty means none."""
    if request_id and _REQUEST_ID.fullmatch(request_id) is None:
        text = f"must be at most {REQUEST_ID_CHARS_MAX} of A-Z a-z 0-9 . _ -"
        raise InvalidArgument.of([Violation("request_id", text, "REQUEST_ID_INVALID")])


def generated_job_id(namespace: str, request_id: str) -> str:
    """The name of a job whose creator gave a request_id, but no job_id."""
    return _spelled(sha256(f"{namespace}/{request_id}".encode()).digest())


def random_job_id() -> str:
    """The name of a job whose creator gave neither."""
    return _spelled(secrets.token_bytes(_GENERATED_BYTES))


def random_request_id() -> str:
    """A request_id for a caller who gave none: the call can then not be repeated safely."""
    return secrets.token_hex(16)


def _spelled(digest: bytes) -> str:
    number = int.from_bytes(digest[:_GENERATED_BYTES])
    return "r-" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def _malformed(field: str, name: str, pattern: str) -> InvalidArgument:
    text = f"must be {pattern}, each part {_GRAMMAR}"
    reason = "REQUIRED" if not name else "NAME_INVALID"
    return InvalidArgument.of([Violation(field, text, reason)])
