"""Floor 5. The filter of a list or a count: a part of AIP-160, turned into a query of the store.

    filter   = term { AND term }                     all must hold
    term     = factor { OR factor }                  OR binds tighter than AND, as in AIP-160
    factor   = "(" filter ")" | field operator value
    operator = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"

    state = SCHEDULED AND labels.team:billing
    (state = COMPLETED OR state = CANCELLED) AND last_outcome = FAILED
    next_time >= 2026-03-29T00:00:00Z AND next_time < "2026-03-30T00:00:00+02:00"
    job_id = "nightly-*"

What the store cannot answer from its indexes is refused with the place and the remedy, never answered slowly or in part:
OR holds between values of one enum field only, there is no NOT, a label is compared with one whole value.

Must never import: rooms below but `errors`, `model`, `query`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, NamedTuple, NoReturn, TypeVar

from tickwheel.server.api.limits import FILTER_CHARS_MAX, FILTER_TERMS_MAX
from tickwheel.server.api.times import parse_rfc3339
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import ExecutionState, JobState
from tickwheel.server.query import ExecutionQuery, JobQuery, Range

_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.(?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_.\-/]+))?")
_OPERATOR: Final = re.compile(r"!=|<=|>=|=|<|>|:")
_VALUE: Final = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|([^\s()\"'<>=!]+)")
_SPACE: Final = re.compile(r"\s*")
_WORD: Final = re.compile(r"(AND|OR|NOT)(?=[\s(]|$)|-(?=\S)")
_ESCAPE: Final = re.compile(r"\\(.)")
_DEPTH_MAX: Final = 8
_NOTHING: Final = (0,)
"""A set of states that no row has: the conditions exclude each other."""

Query = TypeVar("Query", JobQuery, ExecutionQuery)


class Condition(NamedTuple):
    """`field operator value`, and where it stands in the text (from 0)."""

    field: str
    operator: str
    value: str
    at: int


Term = list[Condition]
"""Conditions of which one must hold."""


def job_query(text: str, base: JobQuery) -> JobQuery:
    """Narrow `base` by a filter over jobs. Raises InvalidArgument."""
    return _apply(text, base, _JOB_FIELDS, labels=True)


def execution_query(text: str, base: ExecutionQuery) -> ExecutionQuery:
    """Narrow `base` by a filter over executions. Raises InvalidArgument."""
    return _apply(text, base, _EXECUTION_FIELDS, labels=False)


# --- text → terms ----------------------------------------------------------------------------


def parse(text: str) -> list[Term]:
    """The terms of a filter, all of which must hold. Raises InvalidArgument with the place."""
    if len(text) > FILTER_CHARS_MAX:
        _fail(f"is longer than {FILTER_CHARS_MAX} characters", FILTER_CHARS_MAX)
    if not text.strip():
        return []
    parser = _Parser(text)
    terms = parser.terms(depth=0)
    if parser.at < len(text):
        _fail("AND or the end was expected", parser.at)
    return terms


@dataclass(slots=True)
class _Parser:
    text: str
    at: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        self._skip_space()

    def terms(self, depth: int) -> list[Term]:
        found = self._term(depth)
        while self._word() == "AND":
            self._advance(3)
            found += self._term(depth)
        return found

    def _term(self, depth: int) -> list[Term]:
        start = self.at
        found = self._factor(depth)
        while self._word() == "OR":
            self._advance(2)
            other = self._factor(depth)
            if len(found) != 1 or len(other) != 1:
                _fail("OR cannot join groups that contain AND", start)
            found = [found[0] + other[0]]
        return found

    def _factor(self, depth: int) -> list[Term]:
        if self._word() in {"NOT", "-"}:
            _fail("NOT is not supported; use != or list the values that you want", self.at)
        if not self.text.startswith("(", self.at):
            return [[self._condition()]]
        if depth > _DEPTH_MAX:
            _fail("parentheses are nested too deeply", self.at)
        opened = self.at
        self._advance(1)
        found = self.terms(depth + 1)
        if not self.text.startswith(")", self.at):
            _fail(f"the parenthesis opened at {opened + 1} is not closed", self.at)
        self._advance(1)
        return found

    def _condition(self) -> Condition:
        start = self.at
        self.count += 1
        if self.count > FILTER_TERMS_MAX:
            _fail(f"has more than {FILTER_TERMS_MAX} conditions", start)
        field = self._match(_FIELD, "a field")
        operator = self._match(_OPERATOR, "an operator (=, !=, <, <=, >, >= or :)")
        value = self._match(_VALUE, "a value")
        if value[0] in "\"'":
            value = _ESCAPE.sub(r"\1", value[1:-1])
        return Condition(field, operator, value, start)

    def _match(self, pattern: re.Pattern[str], wanted: str) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            _fail(f"{wanted} was expected", self.at)
        self._advance(match.end() - self.at)
        return match.group()

    def _word(self) -> str:
        match = _WORD.match(self.text, self.at)
        return match.group() if match else ""

    def _advance(self, count: int) -> None:
        self.at += count
        self._skip_space()

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at


def _fail(why: str, at: int) -> NoReturn:
    raise InvalidArgument.of([Violation("filter", f"at character {at + 1}: {why}", "FILTER")])


# --- terms → query ---------------------------------------------------------------------------


def _apply(
    text: str,
    query: Query,
    fields: "dict[str, Callable[[Query, Term], Query]]",
    *,
    labels: bool,
) -> Query:
    for term in parse(text):
        first = term[0]
        name = first.field.partition(".")[0]
        apply = fields.get(name if labels and name == "labels" else first.field)
        if apply is None:
            known = ", ".join(sorted(f"{f}.<key>" if f == "labels" else f for f in fields))
            _fail(f"{first.field!r} is not filterable; these are: {known}", first.at)
        for other in term[1:]:
            if other.field != first.field:
                _fail("OR joins values of one field only", other.at)
        query = apply(query, term)
    return query


def _numbers(
    term: Iterable[Condition], kinds: type[IntEnum], before: tuple[int, ...]
) -> tuple[int, ...]:
    """The numbers that satisfy one of the conditions and are in `before` (empty: any)."""
    allowed: set[int] = set()
    for condition in term:
        if condition.operator not in {"=", "!=", ":"}:
            _fail(f"{condition.field} is compared with =, != or :", condition.at)
        known = kinds.__members__.get(condition.value)
        if known is None:
            names = ", ".join(kinds.__members__)
            _fail(f"{condition.value!r} is no {condition.field}; these are: {names}", condition.at)
        equal = condition.operator != "!="
        allowed |= {int(kind) for kind in kinds if (kind == known) == equal}
    if before:
        allowed &= set(before)
    return tuple(sorted(allowed)) or _NOTHING


def _single(term: Term) -> Condition:
    if len(term) > 1:
        _fail(f"OR is not supported for {term[0].field}; ask once for each value", term[1].at)
    return term[0]


def _narrowed(span: Range, condition: Condition) -> Range | None:
    """The part of `span` where the condition holds; None when there is none. Unset times (0) never match."""
    try:
        floor_ms, ceil_ms = parse_rfc3339(condition.value)
    except ValueError as error:
        _fail(f"{condition.value!r} is {error}", condition.at)
    from_ms, until_ms = max(span.from_ms, 1), span.until_ms
    match condition.operator:
        case ">=":
            from_ms = max(from_ms, ceil_ms)
        case ">":
            from_ms = max(from_ms, floor_ms + 1)
        case "<":
            until_ms = min(until_ms or ceil_ms, ceil_ms)
        case "<=":
            until_ms = min(until_ms or floor_ms + 1, floor_ms + 1)
        case "=" if floor_ms == ceil_ms:
            from_ms, until_ms = max(from_ms, floor_ms), min(until_ms or floor_ms + 1, floor_ms + 1)
        case "=":
            return None
        case _:
            _fail(f"{condition.field} is compared with =, <, <=, > or >=", condition.at)
    if until_ms <= from_ms and (until_ms != 0 or condition.operator in {"<", "<=", "="}):
        return None
    return Range(from_ms, until_ms)


def _job_state(query: JobQuery, term: Term) -> JobQuery:
    return replace(query, states=_numbers(term, JobState, query.states))


def _job_last_outcome(query: JobQuery, term: Term) -> JobQuery:
    return replace(query, last_outcomes=_numbers(term, ExecutionState, query.last_outcomes))


def _job_next_time(query: JobQuery, term: Term) -> JobQuery:
    span = _narrowed(query.next_time, _single(term))
    return replace(query, states=_NOTHING) if span is None else replace(query, next_time=span)


def _job_create_time(query: JobQuery, term: Term) -> JobQuery:
    span = _narrowed(query.create_time, _single(term))
    return replace(query, states=_NOTHING) if span is None else replace(query, create_time=span)


def _job_label(query: JobQuery, term: Term) -> JobQuery:
    condition = _single(term)
    key = condition.field.partition(".")[2].strip("\"'")
    if not key:
        _fail("a label is named: labels.<key> = value", condition.at)
    if condition.operator not in {"=", ":"}:
        _fail("a label is compared with = or :", condition.at)
    if "*" in condition.value or "\x1f" in condition.value:
        _fail("a label is compared with one whole value; wildcards are not supported", condition.at)
    return replace(query, labels=(*query.labels, (key, condition.value)))


def _job_id(query: JobQuery, term: Term) -> JobQuery:
    condition = _single(term)
    prefix, star, rest = condition.value.partition("*")
    if condition.operator not in {"=", ":"} or not star or rest or query.name_prefix:
        _fail(
            'job_id is compared once, with a prefix: job_id = "nightly-*"; for one job use GetJob',
            condition.at,
        )
    return replace(query, name_prefix=prefix)


def _execution_state(query: ExecutionQuery, term: Term) -> ExecutionQuery:
    return replace(query, states=_numbers(term, ExecutionState, query.states))


def _execution_scheduled(query: ExecutionQuery, term: Term) -> ExecutionQuery:
    span = _narrowed(query.scheduled, _single(term))
    return replace(query, states=_NOTHING) if span is None else replace(query, scheduled=span)


_JOB_FIELDS: Final[dict[str, Callable[[JobQuery, Term], JobQuery]]] = {
    "state": _job_state,
    "last_outcome": _job_last_outcome,
    "next_time": _job_next_time,
    "create_time": _job_create_time,
    "labels": _job_label,
    "job_id": _job_id,
}

_EXECUTION_FIELDS: Final[dict[str, Callable[[ExecutionQuery, Term], ExecutionQuery]]] = {
    "state": _execution_state,
    "scheduled_time": _execution_scheduled,
}
