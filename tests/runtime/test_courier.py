"""Phases between a server and sites over an engine that loses, delays and lies."""

import threading
import time
from dataclasses import replace

import pytest

from fgrpo_secure.errors import StateError
from fgrpo_secure.runtime.envelope import (
    Hello,
    Opening,
    Request,
    payload_digest,
    write_answer,
    write_hello,
    write_request,
)
from fgrpo_secure.runtime.serving import PilotEngine
from privacy.crypto import SigningKey
from privacy.ledger import Reason
from privacy.wire import encode
from tests.runtime.sites import ENDLESS, JOB, QUICK, RUN, SERVER, World, key_of

OPENING = encode(Opening("run-1", b"terms", b"plan"))


def opened(world):
    """A world in which every site has opened the run."""
    world.ready()
    answers = world.courier.exchange(
        "open", dict.fromkeys(world.names, OPENING), ENDLESS
    )
    assert answers.keys() == set(world.names)
    return world


def test_every_site_gets_its_own_message_and_its_answer_comes_back(tmp_path):
    with World(tmp_path) as world:
        answers = opened(world).ask("log")
        assert answers == {name: f"{name}:to {name}".encode() for name in "abc"}
        assert world.silences == []


def test_what_is_lost_is_sent_again_and_computed_once(tmp_path):
    def lose(way, site, count):
        return count % 3 != 0

    with World(tmp_path, lose=lose) as world:
        opened(world)
        for phase in ("offer", "roster", "shares"):
            assert world.ask(phase, number=1).keys() == set("abc")
        for trainer in world.trainers.values():
            assert trainer.asked == ["offer", "roster", "shares"]


def test_a_message_that_comes_twice_is_computed_once(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        send = world.send
        world.send = lambda site, data: send(site, data) and send(site, data)
        assert world.ask("offer", number=1).keys() == set("abc")
        assert all(t.asked == ["offer"] for t in world.trainers.values())


def test_a_site_that_is_slower_than_its_deadline_is_missed_and_joins_the_next(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        slow = world.trainers["b"]
        slow.gate.clear()
        assert world.ask("offer", 0.2, number=1).keys() == {"a", "c"}
        assert world.silences == [("b", "no answer to 'offer' within 0 s")]
        slow.gate.set()
        assert world.ask("offer", number=2)["b"] == b"b:to b"


def test_while_a_site_is_busy_only_the_last_that_it_is_asked_waits(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        slow = world.trainers["b"]
        slow.gate.clear()
        for number in (1, 2, 3):
            world.ask("offer", 0.1, number=number)
        slow.gate.set()
        world.ask("offer", number=4)
        assert len(slow.asked) <= 3


def test_a_site_that_is_gone_is_a_dropout_before_the_deadline(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        world.desks.pop("c").end()
        began = time.monotonic()
        assert world.ask("offer", ENDLESS, number=1).keys() == {"a", "b"}
        assert time.monotonic() - began < ENDLESS / 2
        assert world.silences == [("c", "it is gone")]


def test_a_site_that_was_gone_for_one_round_is_in_the_next(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        world.lose = lambda way, site, count: site == "c"
        assert world.ask("offer", number=1).keys() == {"a", "b"}
        world.lose = lambda way, site, count: False
        world.ready()
        assert world.ask("offer", number=2).keys() == set("abc")


def test_a_site_whose_process_is_another_one_is_asked_to_open_again(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        world.desks["a"].end()
        world.begin("a", nonce=b"2" * 32)
        world.until(lambda: world.courier.lives().get("a") == b"2" * 32)
        assert "a" not in world.ask("log", 0.2)
        assert world.courier.exchange("open", {"a": OPENING}, ENDLESS) == {"a": b""}
        assert "a" in world.ask("log")


def test_a_refusal_comes_as_its_code_and_the_words_stay_at_the_site(tmp_path):
    with World(tmp_path) as world:
        world.ready()
        world.trainers["a"].refuse = Reason.POLICY_MODEL
        answers = world.courier.exchange("open", dict.fromkeys("abc", OPENING), ENDLESS)
        assert answers.keys() == {"b", "c"}
        assert world.courier.refused == {"a": Reason.POLICY_MODEL}
        assert world.silences == [("a", "refused 'open': policy_model")]
        assert any("private words" in line for line in world.logs["a"])


def test_a_site_whose_process_dies_misses_the_phase_and_is_started_again(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        trainer = world.trainers["a"]
        trainer.behave, well = trainer.die, trainer.behave
        world.ask("offer", number=1)
        assert world.courier.refused == {"a": Reason.INTERRUPTED}
        trainer.behave = well
        world.until(lambda: trainer.is_alive)
        assert world.ask("offer", number=2).keys() == set("abc")


def test_a_site_that_its_operator_stops_computes_nothing_until_it_goes_on(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        marker = tmp_path / "b.stop"
        marker.touch()
        world.until(lambda: world.trainers["b"].is_halted)
        world.until(lambda: "b" not in world.courier.present)
        assert world.ask("offer", number=1).keys() == {"a", "c"}
        marker.unlink()
        world.ready()
        assert world.ask("offer", number=2).keys() == set("abc")


def test_the_engine_may_end_a_run_in_the_middle_of_a_phase(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        for trainer in world.trainers.values():
            trainer.gate.clear()
        threading.Timer(0.1, lambda: setattr(world, "is_stopped", True)).start()
        with pytest.raises(StateError, match="told to stop"):
            world.ask("offer", number=1)


def test_a_site_whose_key_is_not_pinned_is_not_there(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        forged = write_hello(Hello("d", JOB, bytes(32)), key_of("d"))
        assert not world.courier.hear(forged)
        in_another_name = write_hello(Hello("a", JOB, bytes(32)), key_of("d"))
        assert not world.courier.hear(in_another_name)
        assert world.courier.lives()["a"] == b"a".ljust(32, b"!")


def test_nobody_answers_for_a_site(tmp_path):
    """Whoever carries messages, the server's machine among them, has not its key."""
    seen = []
    with World(tmp_path) as world:
        opened(world)
        world.trainers["a"].gate.clear()
        send = world.send

        def listen(site, data):
            seen.append((site, data))
            return send(site, data)

        world.send = listen

        def lie():
            world.until(lambda: any(site == "a" for site, _ in seen))
            request = world.courier._turn.asked["a"]
            for key in (SERVER, key_of("b"), SigningKey(bytes(32))):
                world.courier.take("a", write_answer(request, b"false", key))
            world.trainers["a"].gate.set()

        liar = threading.Thread(target=lie)
        liar.start()
        assert world.ask("offer", number=1)["a"] == b"a:to a"
        liar.join()


def test_a_request_of_another_server_leaves_a_line_in_the_log_and_no_more(tmp_path):
    with World(tmp_path) as world:
        opened(world)
        asked = list(world.trainers["a"].asked)
        request = Request(
            nonce=b"a".ljust(32, b"!"),
            run=RUN,
            sequence=99,
            round=1,
            phase="offer",
            client="a",
            payload=payload_digest(b"x"),
        )
        for _ in range(300):
            world.send("a", write_request(request, b"x", key_of("b")))
        assert world.trainers["a"].asked == asked
        lines = [line for line in world.logs["a"] if "refused a message" in line]
        assert len(lines) == 100
        assert world.ask("log").keys() == set("abc")


def engine(world, *, begun=False, patience=QUICK):
    return PilotEngine(
        courier=world.courier,
        openings=dict.fromkeys(world.names, OPENING),
        deadline=ENDLESS,
        patience=patience,
        is_begun=lambda: begun,
        keep_ledger=lambda name, data: world.logs["ledgers"].append((name, data)),
    )


ALL = {("a", "b", "c"): 2}


def test_a_round_begins_when_all_are_there_and_each_has_opened_the_run_once(tmp_path):
    with World(tmp_path) as world:
        own = engine(world)
        own.gather(0, ALL)
        own.gather(1, ALL)
        assert all(len(t.openings) == 1 for t in world.trainers.values())


def test_a_round_begins_without_who_does_not_come_and_the_operator_sees_who(tmp_path):
    with World(tmp_path) as world:
        world.desks.pop("c").end()
        world.until(lambda: world.courier.present == {"a", "b"})
        own = engine(world)
        own.gather(1, ALL)
        assert world.absences[-1] == ["c"]
        assert own.evaluating([]) == ["a", "b"]


def test_a_run_waits_where_too_few_come_and_gives_up_in_the_end(tmp_path):
    with World(tmp_path) as world:
        for name in "bc":
            world.desks.pop(name).end()
        world.until(lambda: world.courier.present == {"a"})
        with pytest.raises(StateError, match="b, c did not come"):
            engine(world).gather(1, ALL)


def test_outside_of_rounds_nothing_is_given_up(tmp_path):
    with World(tmp_path) as world:
        world.desks.pop("b").end()
        world.desks.pop("c").end()
        world.until(lambda: world.courier.present == {"a"})
        engine(world).gather(0, ALL)


def test_a_run_that_has_not_begun_does_not_begin_where_a_site_refuses_it(tmp_path):
    with World(tmp_path) as world:
        world.trainers["b"].refuse = Reason.NOT_APPROVED
        with pytest.raises(StateError, match="b: not_approved"):
            engine(world).gather(0, ALL)


def test_a_run_that_has_begun_goes_on_without_a_site_that_refuses_it(tmp_path):
    with World(tmp_path) as world:
        world.trainers["b"].refuse = Reason.NOT_APPROVED
        engine(world, begun=True).gather(1, ALL)
        assert world.trainers["b"].openings == []


def test_ledgers_are_asked_of_those_who_closed(tmp_path):
    with World(tmp_path) as world:
        own = engine(world)
        own.gather(0, ALL)
        own.exchange("close", {"a": b"", "b": b""}, ENDLESS)
        world.logs["ledgers"] = []
        own.collect_ledgers()
        assert dict(world.logs["ledgers"]) == {"a": b"a:", "b": b"b:"}


@pytest.mark.parametrize("least", [2, 3])
def test_a_job_ends_so_that_a_site_which_came_back_can_be_in_the_next(tmp_path, least):
    """At once where a round needs it, and after a while where none does."""
    with World(tmp_path) as world:
        own = engine(world, begun=True)
        own.gather(1, {("a", "b", "c"): least})
        world.desks.pop("c").end()
        world.until(lambda: "c" not in world.courier.present)
        world.connected.add("c")
        world.until(lambda: time.monotonic() - own._began > QUICK.together)
        with pytest.raises(StateError, match="c came back"):
            own.gather(2, {("a", "b", "c"): least})


def test_a_site_that_never_starts_does_not_keep_the_others_from_their_rounds(tmp_path):
    with World(tmp_path) as world:
        world.desks.pop("c").end()
        world.connected.add("c")
        world.until(lambda: world.courier.present == {"a", "b"})
        own = engine(world, begun=True, patience=replace(QUICK, together=ENDLESS))
        own.gather(1, ALL)
