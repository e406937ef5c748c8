"""The session's program, step by step, against a driver that answers what the test says."""

from collections.abc import Callable
from itertools import count

import pytest
from tests.sim.etcd import SimMemory

from tickwheel.server.cluster.etcd_life import (
    RETRY_MS,
    Ask,
    Blocked,
    Fault,
    Gained,
    Grant,
    Life,
    Lost,
    Pause,
    Probe,
    Register,
    Renew,
    Reply,
    Revoke,
    Save,
)
from tickwheel.server.cluster.ports import Held, Item, Registration

KEY, VALUE, TTL_S = "nodes/1", b"here", 3
LEASES = (11, 12, 13)
Answer = Callable[[Reply], Reply]


def failed(reply: Reply) -> Reply:
    return reply._replace(fault=Fault.FAILED)


def gone(reply: Reply) -> Reply:
    return reply._replace(ttl_s=0)


class Driver:
    """Takes the program through its steps. What is not said otherwise succeeds, in no time; a pause takes its time."""

    def __init__(self, remembered: int = 0) -> None:
        self.well = True
        self.now_ms = 1_000_000
        self.asks: list[Ask] = []
        self.answers: dict[type[Ask], list[Answer]] = {}
        self.took_ms = 0
        leases = iter(LEASES)
        registration = Registration(
            key=KEY,
            value=VALUE,
            ttl_s=TTL_S,
            healthy=lambda: self.well,
            on_held=lambda _: None,
            on_lost=lambda _: None,
            memory=SimMemory(),
        )
        self.life = Life(registration, remembered, lambda: next(leases))
        self._program = self.life.run()
        self.ask = next(self._program)
        self._revisions = count(7)

    def step(self) -> Ask:
        """Do what is asked for; what it was."""
        ask = self.ask
        self.asks.append(ask)
        self.ask = self._program.send(self._reply(ask))
        return ask

    def until(self, kind: type[Ask]) -> Ask:
        """Go on until something of a kind was done."""
        for _ in range(100):
            if isinstance(ask := self.step(), kind):
                return ask
        raise AssertionError(f"no {kind} in {self.asks[-10:]}")

    def kinds(self) -> list[type[Ask]]:
        return [type(ask) for ask in self.asks if not isinstance(ask, Pause)]

    def _reply(self, ask: Ask) -> Reply:
        sent_ms = self.now_ms
        self.now_ms += ask.ms if isinstance(ask, Pause) else self.took_ms
        reply = Reply(sent_ms, self.now_ms)
        if isinstance(ask, Grant | Renew | Probe):
            reply = reply._replace(ttl_s=TTL_S)
        if isinstance(ask, Register):
            reply = reply._replace(item=self._item(ask.lease))
        said = self.answers.get(type(ask))
        return said.pop(0)(reply) if said else reply

    def _item(self, lease: int) -> Item:
        revision = next(self._revisions)
        return Item(KEY, VALUE, revision, revision, 1, lease)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_it_registers_and_renews(driver: Driver) -> None:
    driver.until(Renew)
    assert [ask for ask in driver.asks if not isinstance(ask, Pause)] == [
        Save(11),
        Grant(11, TTL_S),
        Register(KEY, VALUE, 11),
        Gained(Held(11, 7, TTL_S * 1_000)),
        Renew(11),
    ]
    assert driver.life.lease == 11


def test_the_lease_of_before_is_ended_first() -> None:
    driver = Driver(remembered=5)
    driver.answers[Revoke] = [failed, failed]
    driver.until(Gained)
    assert driver.asks[:5] == [Revoke(5), Pause(RETRY_MS), Revoke(5), Pause(RETRY_MS), Revoke(5)]
    assert driver.kinds()[3:] == [Save, Grant, Register, Gained]


def test_an_unwell_node_ends_its_old_lease_and_takes_none() -> None:
    fresh = Driver(remembered=5)
    fresh.well = False
    for _ in range(10):
        fresh.step()
    assert fresh.kinds() == [Revoke]
    fresh.well = True
    fresh.until(Gained)


def test_an_id_is_saved_before_it_is_used(driver: Driver) -> None:
    driver.answers[Save] = [failed, failed]
    driver.until(Grant)
    assert driver.kinds() == [Save, Save, Save, Grant]


def test_a_grant_that_is_not_answered_is_revoked_and_its_id_never_used_again(
    driver: Driver,
) -> None:
    driver.answers[Grant] = [failed, gone]
    driver.until(Gained)
    assert [ask for ask in driver.asks if isinstance(ask, Save | Grant | Revoke)] == [
        Save(11),
        Grant(11, TTL_S),
        Revoke(11),
        Save(12),
        Grant(12, TTL_S),
        Revoke(12),
        Save(13),
        Grant(13, TTL_S),
    ]


def test_a_registration_is_tried_again(driver: Driver) -> None:
    driver.answers[Register] = [failed]
    driver.until(Gained)
    assert driver.kinds() == [Save, Grant, Register, Register, Gained]


def test_a_lease_that_ends_before_the_registration_is_replaced(driver: Driver) -> None:
    driver.answers[Register] = [lambda reply: reply._replace(fault=Fault.LEASE_GONE, item=None)]
    driver.until(Gained)
    assert driver.kinds() == [Save, Grant, Register, Revoke, Save, Grant, Register, Gained]
    assert driver.life.lease == 12


def test_a_stranger_of_our_name_is_left_alone(driver: Driver) -> None:
    stranger = Item(KEY, b"other", 3, 3, 1, 99)
    driver.answers[Register] = [lambda reply: reply._replace(item=stranger)] * 2
    driver.until(Gained)
    assert driver.kinds() == [Save, Grant, Register, Blocked, Register, Blocked, Register, Gained]
    assert Blocked(stranger) in driver.asks
    assert Revoke(99) not in driver.asks


def test_the_deadline_counts_from_when_the_request_left(driver: Driver) -> None:
    driver.until(Gained)
    driver.took_ms = 700
    driver.until(Renew)
    sent_ms = driver.now_ms - 700
    assert driver.life.deadline_ms == sent_ms + TTL_S * 1_000
    driver.took_ms = 0
    driver.until(Renew)
    assert driver.now_ms == sent_ms + TTL_S * 1_000 // 3


def test_a_deadline_never_goes_back(driver: Driver) -> None:
    driver.answers[Renew] = [lambda reply: reply._replace(ttl_s=60), lambda reply: reply]
    driver.until(Renew)
    far_ms = driver.life.deadline_ms
    driver.until(Renew)
    assert driver.life.deadline_ms == far_ms


def test_no_answer_is_no_loss(driver: Driver) -> None:
    driver.until(Gained)
    driver.answers[Renew] = [failed] * 40
    while driver.now_ms < driver.life.deadline_ms + 500:
        driver.step()
    assert Lost not in driver.kinds()
    driver.answers.clear()
    driver.until(Renew)
    assert driver.life.deadline_ms == driver.now_ms + TTL_S * 1_000
    assert driver.life.lease == 11


def test_a_loss_is_told_and_begins_anew(driver: Driver) -> None:
    driver.answers[Renew] = [gone]
    driver.until(Lost)
    assert driver.life.deadline_ms == 0
    driver.until(Gained)
    assert driver.kinds()[4:] == [Renew, Lost, Save, Grant, Register, Gained]
    assert driver.asks[-1] == Gained(Held(12, 8, TTL_S * 1_000))


def test_an_unwell_node_is_not_renewed_and_goes_on_when_it_is_well_in_time(driver: Driver) -> None:
    driver.until(Gained)
    driver.well = False
    before_ms = driver.life.deadline_ms
    while driver.now_ms < before_ms - 500:
        driver.step()
    assert driver.kinds()[4:] == []
    driver.well = True
    driver.until(Renew)
    assert driver.now_ms <= before_ms - 500 + 2 * RETRY_MS
    assert driver.life.deadline_ms == driver.now_ms + TTL_S * 1_000


def test_an_unwell_node_learns_that_its_lease_is_gone(driver: Driver) -> None:
    driver.until(Gained)
    driver.well = False
    driver.answers[Probe] = [lambda reply: reply, failed, gone]
    deadline_ms = driver.life.deadline_ms
    driver.until(Lost)
    assert driver.kinds()[4:] == [Probe, Probe, Probe, Lost]
    assert driver.now_ms >= deadline_ms
    for _ in range(5):
        driver.step()
    assert driver.kinds()[8:] == []
