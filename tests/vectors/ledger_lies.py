"""What is not a true account of a run: each function is one lie, told in its docstring.

A lie is told of a run of `ledger_runs` and breaks a rule of docs/ledger.md, "What a
verifier checks". `damage` changes bytes of files, as anyone can. `lie` changes what a
party wrote, as its owner can: all that follows is signed again, and the other parties
were told what the lie says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from privacy.ledger import (
    Reason,
    cap_order,
    filter_epsilon,
    plan_digest,
    price_charges,
)
from privacy.ledger.envelope import open_line, seal_line
from privacy.ledger.fields import decimal_text
from privacy.plan import SERVER
from privacy.wire import canonical_json
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    digest,
    event_of,
    forge,
    make_key,
    make_plan,
)
from tests.vectors.ledger_runs import EARLIER, LOCAL
from tests.vectors.ledger_story import Files, Record, Story, ledger_file

ALPHA, BETA, GAMMA = (ledger_file(name) for name in CLIENTS)
SERVERS = ledger_file(SERVER)
OTHER = digest("something else").hex()
STRANGER = make_key("mallory")
Tell = Callable[[Files], Files]


@dataclass(frozen=True, slots=True)
class Lie:
    """One folder that must not verify.

    Attributes:
        run: the honest run that it is told of.
        rule: the rule of docs/ledger.md that it breaks.
        tell: makes the folder.
    """

    run: str
    rule: int
    what: str
    tell: Tell


LIES: dict[str, Lie] = {}


def damage(run: str, rule: int) -> Callable[[Tell], Tell]:
    """A change of bytes."""

    def register(tell: Tell) -> Tell:
        LIES[tell.__name__] = Lie(run, rule, " ".join(tell.__doc__.split()), tell)
        return tell

    return register


def lie(run: str, rule: int) -> Callable[[Callable[[Story], None]], object]:
    """A change of records, signed by whose ledger it is."""

    def register(change: Callable[[Story], None]) -> object:
        def tell(files: Files) -> Files:
            story = Story(files)
            change(story)
            return story.written()

        what = " ".join(change.__doc__.split())
        LIES[change.__name__] = Lie(run, rule, what, tell)
        return change

    return register


def lines_of(files: Files, file: str) -> list[bytes]:
    """A ledger's lines, each with its newline."""
    return files[file].splitlines(keepends=True)


def with_lines(files: Files, file: str, lines: list[bytes]) -> Files:
    """Other lines, and no remembered head that would tell."""
    files = files | {file: b"".join(lines)}
    del files[f"{file}.head"]
    return files


def with_last(files: Files, line: bytes) -> Files:
    """Another last line of alpha's."""
    return with_lines(files, ALPHA, [*lines_of(files, ALPHA)[:-1], line + b"\n"])


def last_record(files: Files) -> Record:
    """What alpha wrote last."""
    return json.loads(open_line(lines_of(files, ALPHA)[-1][:-1]).payload)


def with_last_payload(files: Files, payload: bytes) -> Files:
    """Another last record of alpha's, well signed."""
    return with_last(files, seal_line(payload, make_key("alpha")))


def with_last_changed(files: Files, **changes: object) -> Files:
    """The last record of alpha's with other fields, well signed."""
    return with_last_payload(files, canonical_json(last_record(files) | changes))


# --- Rule 1: lines --------------------------------------------------------------------


@damage("three_rounds", 1)
def flipped_byte(files: Files) -> Files:
    """One bit of a payload is another."""
    data = bytearray(files[ALPHA])
    data[5000] ^= 1
    return files | {ALPHA: bytes(data)}


@damage("three_rounds", 1)
def flipped_bit_of_a_signature(files: Files) -> Files:
    """One bit of a signature is another."""
    line = lines_of(files, ALPHA)[-1][:-1]
    envelope = json.loads(line)
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    signature[40] ^= 16
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return with_last(files, canonical_json(envelope))


@damage("three_rounds", 1)
def middle_line_removed(files: Files) -> Files:
    """A line is cut out of the middle."""
    lines = lines_of(files, ALPHA)
    return with_lines(files, ALPHA, lines[:4] + lines[5:])


@damage("three_rounds", 1)
def first_line_removed(files: Files) -> Files:
    """The line that opens the run is cut off."""
    return with_lines(files, ALPHA, lines_of(files, ALPHA)[1:])


@damage("three_rounds", 1)
def lines_swapped(files: Files) -> Files:
    """Two lines stand the other way round."""
    lines = lines_of(files, ALPHA)
    lines[4], lines[5] = lines[5], lines[4]
    return with_lines(files, ALPHA, lines)


@damage("three_rounds", 1)
def line_repeated(files: Files) -> Files:
    """A line stands there twice."""
    lines = lines_of(files, ALPHA)
    return with_lines(files, ALPHA, [*lines, lines[-1]])


@damage("three_rounds", 1)
def line_of_another_signer(files: Files) -> Files:
    """The last line is signed by a stranger."""
    return with_last(files, seal_line(canonical_json(last_record(files)), STRANGER))


@damage("three_rounds", 1)
def line_of_another_signer_under_this_keys_name(files: Files) -> Files:
    """A stranger signs the last line and names alpha's key."""
    envelope = json.loads(lines_of(files, ALPHA)[-1])
    forged = json.loads(seal_line(canonical_json(last_record(files)), STRANGER))
    envelope["signatures"][0]["sig"] = forged["signatures"][0]["sig"]
    return with_last(files, canonical_json(envelope))


@damage("no_round", 1)
def ledger_of_another_signer(files: Files) -> Files:
    """A stranger signs the whole ledger."""
    story = Story(files)
    story.keys["alpha"] = STRANGER
    written = story.written()
    return files | {name: written[name] for name in (ALPHA, f"{ALPHA}.head")}


@damage("three_rounds", 1)
def last_newline_missing(files: Files) -> Files:
    """The last line has no newline."""
    return with_last(files, b"") | {ALPHA: files[ALPHA][:-1]}


@damage("three_rounds", 1)
def empty_line(files: Files) -> Files:
    """A newline too many stands at the end."""
    return with_lines(files, ALPHA, [*lines_of(files, ALPHA), b"\n"])


@damage("no_round", 1)
def lines_end_as_on_windows(files: Files) -> Files:
    """Every newline has a carriage return before it."""
    crlf = files[ALPHA].replace(b"\n", b"\r\n")
    return with_lines(files, ALPHA, [crlf])


@damage("three_rounds", 1)
def empty_ledger(files: Files) -> Files:
    """The ledger has no lines."""
    return with_lines(files, ALPHA, [])


@damage("three_rounds", 1)
def envelope_with_a_space(files: Files) -> Files:
    """The envelope says the same and is not in canonical form."""
    line = lines_of(files, ALPHA)[-1][:-1]
    return with_last(files, line.replace(b'","payloadType', b'", "payloadType'))


@damage("three_rounds", 1)
def envelope_with_a_key_twice(files: Files) -> Files:
    """The envelope has `payloadType` twice."""
    line = lines_of(files, ALPHA)[-1][:-1]
    kind = json.dumps(json.loads(line)["payloadType"]).encode()
    twice = b'"payloadType":' + kind + b","
    return with_last(files, line.replace(twice, twice + twice))


@damage("three_rounds", 1)
def envelope_of_another_type(files: Files) -> Files:
    """The envelope names the next version of the format."""
    line = lines_of(files, ALPHA)[-1][:-1]
    return with_last(files, line.replace(b"ledger.v1+json", b"ledger.v2+json"))


@damage("three_rounds", 1)
def two_signatures(files: Files) -> Files:
    """The envelope has the same signature twice."""
    envelope = json.loads(lines_of(files, ALPHA)[-1])
    envelope["signatures"] *= 2
    return with_last(files, canonical_json(envelope))


@damage("three_rounds", 1)
def unused_bits_of_base64(files: Files) -> Files:
    """The signature's base64 has a bit that decoders throw away."""
    line = lines_of(files, ALPHA)[-1][:-1]
    before = json.loads(line)["signatures"][0]["sig"]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = chr(alphabet[alphabet.index(before[-3].encode()) | 1])
    after = before[:-3] + other + "=="
    return with_last(files, line.replace(before.encode(), after.encode()))


@damage("three_rounds", 1)
def payload_not_canonical(files: Files) -> Files:
    """The owner signs a payload whose keys are not sorted."""
    record = last_record(files)
    text = json.dumps(dict(reversed(record.items())), separators=(",", ":"))
    return with_last_payload(files, text.encode())


@damage("three_rounds", 1)
def payload_with_a_key_twice(files: Files) -> Files:
    """The owner signs a payload with two values of one field."""
    text = canonical_json(last_record(files))
    return with_last_payload(
        files, text.replace(b'"aborted":', b'"aborted":0,"aborted":')
    )


@damage("three_rounds", 1)
def payload_with_a_fraction(files: Files) -> Files:
    """The owner signs a count that is written as a fraction."""
    text = canonical_json(last_record(files))
    return with_last_payload(files, text.replace(b'"aborted":1', b'"aborted":1.0'))


@damage("three_rounds", 1)
def payload_with_a_large_integer(files: Files) -> Files:
    """The owner signs an integer that a double does not hold."""
    text = canonical_json(last_record(files))
    return with_last_payload(
        files, text.replace(b'"missed":0', b'"missed":9007199254740992')
    )


@damage("three_rounds", 1)
def truth_for_a_count(files: Files) -> Files:
    """The owner signs `true` where a count belongs."""
    return with_last_changed(files, aborted=True)


@damage("three_rounds", 1)
def unknown_field(files: Files) -> Files:
    """The owner signs a field that the kind does not have."""
    return with_last_changed(files, remark="all is well")


@damage("three_rounds", 1)
def missing_field(files: Files) -> Files:
    """The owner leaves out a field of the kind."""
    record = last_record(files)
    del record["missed"]
    return with_last_payload(files, canonical_json(record))


@damage("three_rounds", 1)
def unknown_kind(files: Files) -> Files:
    """The owner signs a record of a kind that does not exist."""
    return with_last_changed(files, kind="settled")


@damage("three_rounds", 1)
def unknown_version(files: Files) -> Files:
    """The owner signs a record of the next version."""
    return with_last_changed(files, v=2)


@lie("every_process_died", 1)
def unknown_reason(story: Story) -> None:
    """A client refuses with a reason that is not among the codes."""
    story.of("gamma", "refused")["reason"] = "unwilling"


@lie("one_round", 1)
def survivors_not_sorted(story: Story) -> None:
    """A client names the survivors in another order."""
    story.of("alpha", "outcome")["survivors"] = ["beta", "alpha", "gamma"]


@lie("one_round", 1)
def epsilon_with_a_trailing_zero(story: Story) -> None:
    """A client writes a figure in a form that is not the shortest."""
    story.of("alpha", "intent")["spend"]["delta"] = "0.000010"


@lie("one_round", 1)
def rate_not_in_lowest_terms(story: Story) -> None:
    """A client writes its rate as 2/100."""
    story.of("alpha", "intent")["event"]["sampling_rate"] = "2/100"


@damage("three_rounds", 1)
def another_keyid(files: Files) -> Files:
    """A line is signed by its party and names a stranger's key."""
    envelope = json.loads(lines_of(files, ALPHA)[-1])
    envelope["signatures"][0]["keyid"] = STRANGER.verify_key.fingerprint
    return with_last(files, canonical_json(envelope))


@damage("three_rounds", 1)
def envelope_with_a_field_more(files: Files) -> Files:
    """An envelope has a field that DSSE does not know."""
    envelope = json.loads(lines_of(files, ALPHA)[-1]) | {"comment": "all is well"}
    return with_last(files, canonical_json(envelope))


@damage("three_rounds", 1)
def payload_that_is_a_list(files: Files) -> Files:
    """The owner signs a list."""
    return with_last_payload(files, b"[]")


@lie("three_rounds", 1)
def number_of_another_line(story: Story) -> None:
    """A line's `seq` leaves one out; its links are whole."""
    story.forced[id(story.of("alpha", "closed"))] = {"seq": 13}


@lie("three_rounds", 1)
def link_to_nowhere(story: Story) -> None:
    """A line's `prev` is of no line; its number is right."""
    story.forced[id(story.of("alpha", "closed"))] = {"prev": OTHER}


@lie("no_round", 11)
def plan_nested_too_deep(story: Story) -> None:
    """All agree on a plan with a term that is nested 40 levels deep."""
    deep: object = 0
    for _ in range(40):
        deep = [deep]
    story.change_plan(recipe=deep)


@lie("no_round", 11)
def plan_with_a_large_integer(story: Story) -> None:
    """All agree on a plan with an integer that a double does not hold."""
    story.change_plan(recipe=2**53)


# --- Rule 2: what may follow what -----------------------------------------------------


@lie("three_rounds", 2)
def commit_without_an_intent(story: Story) -> None:
    """A client sends a vector that it did not charge."""
    story.leave_out("alpha", "intent", round=3)


@lie("three_rounds", 2)
def two_intents_for_one_round(story: Story) -> None:
    """A client charges one attempt twice, though no process died in between."""
    records = story.records["alpha"]
    place = records.index(story.of("alpha", "intent", 2))
    records.insert(place, dict(records[place]))


@lie("shown", 2)
def shown_after_the_charge(story: Story) -> None:
    """A client writes down what it was shown when its vector has left."""
    records = story.records["alpha"]
    record = story.of("alpha", "shown")
    records.remove(record)
    records.insert(records.index(story.of("alpha", "commit")) + 1, record)


@lie("shown", 4)
def shown_of_another_attempt(story: Story) -> None:
    """A client writes down what it was shown of an attempt that it did not join."""
    story.of("alpha", "shown")["attempt"] = 2


@lie("shown", 6)
def shown_twice(story: Story) -> None:
    """A client says twice what it was shown of one attempt."""
    records = story.records["alpha"]
    shown = story.of("alpha", "shown")
    records.insert(records.index(shown), dict(shown))
    story.mend("alpha")


@lie("three_rounds", 2)
def round_without_an_outcome(story: Story) -> None:
    """A client joins the third round and leaves the second one open."""
    story.leave_out("alpha", "outcome", round=2)


@lie("three_rounds", 2)
def line_after_the_last(story: Story) -> None:
    """A client joins a round of a run that it has closed."""
    records = story.records["alpha"]
    records.append(dict(story.of("alpha", "joined", 2)))


@lie("three_rounds", 2)
def published_without_survivors(story: Story) -> None:
    """The server publishes a sum and never says whose vectors came in."""
    story.leave_out(SERVER, "survivors", round=3)


@damage("no_round", 2)
def ledger_of_another_party(files: Files) -> Files:
    """Alpha signs beta's story."""
    story = Story(files)
    forged = forge(
        [json.loads(open_line(line).payload) for line in files[BETA].splitlines()],
        story.keys["alpha"],
    )
    return with_lines(files, ALPHA, [forged])


@lie("three_rounds", 2)
def line_of_another_run(story: Story) -> None:
    """A client's charge names another run."""
    story.of("alpha", "intent", 2)["run"] = EARLIER.hex()


@lie("three_rounds", 2)
def line_of_another_role(story: Story) -> None:
    """A client's last line says that it is the server's."""
    story.of("alpha", "closed")["role"] = "server"


@lie("no_round", 2)
def server_with_two_runs(story: Story) -> None:
    """The server opens and closes a second run in its ledger."""
    records = story.records[SERVER]
    later = [record | {"run": EARLIER.hex()} for record in records]
    records += later
    records[-1] |= {"records": 4}


@lie("nothing_charged", 2)
def run_opened_twice(story: Story) -> None:
    """A client opens and closes an earlier run once more."""
    records = story.records["alpha"]
    again = [dict(records[0]), records[3] | {"run": records[0]["run"]}]
    records[2:2] = again
    records[-1]["records"] = 6


# --- Rule 3: opening ------------------------------------------------------------------


@lie("no_round", 3)
def several_steps_without_local_trust(story: Story) -> None:
    """All agree on a plan of two steps on one draw whose noise is shared."""
    story.change_plan(inner_steps=2)


@lie("no_round", 3)
def plan_of_another_format(story: Story) -> None:
    """All agree on a plan of a format that this verifier does not know."""
    story.change_plan(format="fgrpo-secure/plan/2")


@lie("no_round", 3)
def plan_with_an_exponent(story: Story) -> None:
    """All agree on a plan whose delta is not in its plain form."""
    story.change_plan(delta="1e-5")


@lie("no_round", 3)
def order_of_the_filter_chosen(story: Story) -> None:
    """A client registers an order of its own choice for its filter."""
    story.of("alpha", "opened")["cap_order"] += 1


@lie("second_run", 3)
def order_of_the_filter_changed(story: Story) -> None:
    """A client's second run registers another order than the first."""
    story.of("alpha", "opened", 1)["cap_order"] += 1


@lie("second_run", 3)
def data_set_changed(story: Story) -> None:
    """A client's second run is on other data, in the same ledger."""
    story.of("alpha", "opened", 1)["data"] = "11" * 16


@lie("second_run", 3)
def delta_of_the_cap_changed(story: Story) -> None:
    """A client's second run has its cap at a larger delta."""
    story.of("alpha", "opened", 1)["cap_delta"] = "0.001"


@lie("second_run", 3)
def cap_taken_away(story: Story) -> None:
    """A client's second run has no cap, where the first had one."""
    story.of("alpha", "opened", 1)["cap_epsilon"] = "infinity"


@lie("second_run", 3)
def unit_changed(story: Story) -> None:
    """A client's first run in the ledger protected another kind of unit."""
    opened = story.of("alpha", "opened")
    opened["plan"] = opened["plan"] | {"unit": "patient_id"}
    opened["plan_digest"] = plan_digest(opened["plan"]).hex()


@lie("second_run", 3)
def digest_of_another_plan(story: Story) -> None:
    """In an earlier run of a client `opened` has a digest that is not its plan's."""
    story.of("alpha", "opened")["plan_digest"] = OTHER


@lie("second_run", 3)
def roster_without_a_client(story: Story) -> None:
    """In an earlier run a client pinned no key for one of the plan's clients."""
    del story.of("alpha", "opened")["roster"]["gamma"]


@lie("second_run", 3)
def roster_with_another_own_key(story: Story) -> None:
    """In an earlier run a client pinned a key as its own that it does not sign with."""
    story.of("alpha", "opened")["roster"]["alpha"] = STRANGER.verify_key.raw.hex()


@lie("no_round", 3)
def cap_at_delta_one(story: Story) -> None:
    """A client has no cap, and that at a delta at which nothing is promised."""
    opened = story.of("alpha", "opened")
    opened |= {"cap_epsilon": "infinity", "cap_delta": "1", "cap_order": 2}
    story.of("alpha", "closed")["lifetime"]["delta"] = "1"


@lie("nothing_charged", 3)
def second_run_that_the_filter_refuses(story: Story) -> None:
    """A client's second run has a cap below what its first run registered."""
    story.of("alpha", "opened", 1)["cap_epsilon"] = "7.8"


# --- Rule 4: rounds -------------------------------------------------------------------


@lie("three_rounds", 4)
def round_going_backwards(story: Story) -> None:
    """The third round is called the first, by everybody."""
    for name in (*CLIENTS, SERVER):
        for record in story.records[name]:
            if record.get("round") == 3:
                record["round"] = 1


@lie("three_rounds", 4)
def round_beyond_the_plan(story: Story) -> None:
    """The third round is called the fourth, which the plan does not have."""
    for name in (*CLIENTS, SERVER):
        for record in story.records[name]:
            if record.get("round") == 3:
                record["round"] = 4


@lie("three_rounds", 4)
def charge_of_another_round(story: Story) -> None:
    """A client joins the third round and charges the second."""
    story.of("alpha", "intent", 2)["round"] = 2


@lie("three_rounds", 4)
def adapters_that_do_not_chain(story: Story) -> None:
    """The third round starts from an adapter that no round published."""
    for kind, name in (
        ("round_opened", "adapter_digest"),
        ("joined", "adapter_digest"),
        ("published", "adapter_before"),
    ):
        for record in story.every(kind):
            if record["round"] == 3:
                record[name] = OTHER


# --- Rule 5: charges ------------------------------------------------------------------


@lie("three_rounds", 5)
def rate_lowered(story: Story) -> None:
    """A client charges as if it drew from fewer units."""
    story.of("alpha", "intent", 2)["event"]["sampling_rate"] = "1/100"


@lie("three_rounds", 5)
def variance_raised(story: Story) -> None:
    """A client charges more noise than the plan has."""
    story.of("alpha", "intent", 2)["event"]["noise_variance"] = str(2**24)


@lie("three_rounds", 5)
def norm_bound_lowered(story: Story) -> None:
    """A client charges a smaller sensitivity than the plan has."""
    story.of("alpha", "intent", 2)["event"]["norm_bound"] = 512


@lie("three_rounds", 5)
def statistic_not_charged(story: Story) -> None:
    """A client charges its gradients and not its reward statistic."""
    event = story.of("alpha", "intent", 2)["event"]
    event |= {"statistic_norm_bound": 0, "statistic_variance": "0"}


@lie("three_rounds", 5)
def epsilon_understated(story: Story) -> None:
    """A client states a smaller epsilon than its charges cost, all through."""
    for record in (story.of("alpha", "intent", 2), story.of("alpha", "closed")):
        record["spend"]["epsilon_pld"] = "0.05"


@lie("three_rounds", 5)
def renyi_figure_understated_in_the_last_digit(story: Story) -> None:
    """A client's epsilon by RDP is a millionth too small."""
    for record in (story.of("alpha", "intent", 2), story.of("alpha", "closed")):
        digits = record["spend"]["epsilon_rdp"]
        assert digits[-1] in "123456789"
        record["spend"]["epsilon_rdp"] = digits[:-1] + str(int(digits[-1]) - 1)
        if digits[-1] == "1":
            record["spend"]["epsilon_rdp"] = digits[:-1]


@lie("three_rounds", 5)
def epsilon_overstated(story: Story) -> None:
    """A client calls a figure infinite that is not, so that the other one counts."""
    for record in (story.of("alpha", "intent", 2), story.of("alpha", "closed")):
        record["spend"]["epsilon_pld"] = "infinity"


@lie("three_rounds", 5)
def lifetime_understated(story: Story) -> None:
    """A client states less for its lifetime than for the run."""
    for record in (story.of("alpha", "intent", 2), story.of("alpha", "closed")):
        record["lifetime"]["epsilon_pld"] = "0.01"


@lie("three_rounds", 5)
def charges_counted_wrong(story: Story) -> None:
    """A client's third charge says that it is the second."""
    story.of("alpha", "intent", 2)["spend"]["charges"] = 2


@lie("one_round", 5)
def run_above_its_target(story: Story) -> None:
    """All agree on a plan whose target is below what its rounds cost."""
    story.change_plan(epsilon="0.08")


@lie("one_round", 5)
def lifetime_above_the_cap(story: Story) -> None:
    """A client charges more than its own cap allows."""
    cap = "0.04"
    order = cap_order(event_of(make_plan()), Decimal(cap), Decimal("0.0001"))
    story.of("alpha", "opened").update(cap_epsilon=cap, cap_order=order)
    for record in (story.of("alpha", "intent"), story.of("alpha", "closed")):
        charged = ((event_of(make_plan()), 1),)
        filtered = filter_epsilon(charged, Decimal("0.0001"), order)
        record["lifetime"]["epsilon_rdp"] = decimal_text(filtered)


@lie("second_run", 5)
def two_runs_above_the_cap(story: Story) -> None:
    """A client's second run brings the filter's figure above the cap."""
    story.of("alpha", "opened", 1)["cap_epsilon"] = "7.8243"


@lie("second_run", 5)
def two_runs_priced_as_if_fixed_in_advance(story: Story) -> None:
    """A client prices two runs by PLD, though the second may follow from the first."""
    figures = {"epsilon_pld": "0.08", "claimed": "pld"}
    for record in (story.of("alpha", "intent", 1), story.of("alpha", "closed", 1)):
        record["lifetime"] |= figures


@lie("second_run", 5)
def earlier_run_forgotten(story: Story) -> None:
    """A client's lifetime has the second run alone."""
    spend = story.of("alpha", "intent", 1)
    for record in (spend, story.of("alpha", "closed", 1)):
        record["lifetime"]["charges"] = 1


@lie("no_promise", 5)
def finite_target_without_noise(story: Story) -> None:
    """All agree on a plan that promises epsilon 8 and adds no noise."""
    story.change_plan(epsilon="8")


@lie("every_process_died", 5)
def more_than_the_plan_registers(story: Story) -> None:
    """All agree on a plan of one round, of which alpha charged two attempts."""
    story.change_plan(rounds=1)


@lie("three_rounds", 5)
def larger_delta(story: Story) -> None:
    """A client says that its figures hold at another delta than the plan's."""
    for record in (story.of("alpha", "intent", 2), story.of("alpha", "closed")):
        record["spend"]["delta"] = "0.000001"


@lie("three_rounds", 5)
def lifetime_claims_the_other_figure(story: Story) -> None:
    """A client of one run holds the filter's figure against its cap."""
    story.of("alpha", "intent", 2)["lifetime"]["claimed"] = "rdp"


@lie("local_trust", 5)
def one_draw_charged_for_two(story: Story) -> None:
    """A client of local trust draws twice and charges once, and prices that right."""
    event = event_of(make_plan(**LOCAL, rounds=1))
    cap_delta, order = Decimal("0.0001"), story.of("alpha", "opened")["cap_order"]
    pld, rdp = price_charges(((event, 1),), Decimal("0.00001"), 2)
    life, _ = price_charges(((event, 1),), cap_delta, 2)
    filtered = filter_epsilon(((event, 1),), cap_delta, order)
    story.of("alpha", "intent")["releases"] = 1
    for record in (story.of("alpha", "intent"), story.of("alpha", "closed")):
        record["spend"] |= {
            "charges": 1,
            "epsilon_pld": decimal_text(pld),
            "epsilon_rdp": decimal_text(rdp),
        }
        record["lifetime"] |= {
            "charges": 1,
            "epsilon_pld": decimal_text(life),
            "epsilon_rdp": decimal_text(filtered),
        }


# --- Rules 6 to 10: the rest of one ledger --------------------------------------------


@lie("three_rounds", 6)
def another_modulus(story: Story) -> None:
    """A client's vector is of another modulus than the plan's."""
    story.of("alpha", "commit", 1)["modulus_bits"] = 31


@lie("three_rounds", 7)
def missed_and_half_told(story: Story) -> None:
    """A client that missed a sum knows its adapter and not its survivors."""
    story.of("gamma", "outcome", 2)["survivors"] = []


@lie("three_rounds", 7)
def aborted_with_an_adapter(story: Story) -> None:
    """A client has a next adapter from a round that gave none."""
    story.of("alpha", "outcome", 1)["adapter_digest"] = OTHER


@lie("one_round", 8)
def survivor_outside_the_sharers(story: Story) -> None:
    """The server counts a survivor who had shared no keys."""
    story.of(SERVER, "survivors")["sharers"] = ["alpha", "gamma"]


@lie("three_rounds", 8)
def member_outside_the_plan(story: Story) -> None:
    """The server's roster has a client that the plan does not know."""
    story.of(SERVER, "roster", 1)["members"] = ["alpha", "beta", "delta", "gamma"]


@lie("one_round", 8)
def sum_below_the_threshold(story: Story) -> None:
    """All agree on a colluder, with whom a sum of two out of three is too small."""
    story.change_plan(colluders=1)


@lie("three_rounds", 8)
def published_survivors_are_others(story: Story) -> None:
    """The server publishes for survivors that it did not count."""
    story.of(SERVER, "survivors", 1)["survivors"] = ["alpha", "beta", "gamma"]


@lie("three_rounds", 8)
def adapter_before_is_another(story: Story) -> None:
    """The server publishes a sum that moved another adapter than it offered."""
    story.of(SERVER, "published", 1)["adapter_before"] = OTHER


@lie("every_process_died", 8)
def dropout_outside_the_plan(story: Story) -> None:
    """The server blames a client that the plan does not know."""
    story.of(SERVER, "aborted")["dropouts"] = ["delta"]


@lie("every_process_died", 9)
def resumed_after_something_else(story: Story) -> None:
    """A client says that its process died at another record than it did."""
    story.of("alpha", "resumed")["last"] = "joined"


@lie("every_process_died", 9)
def resumed_in_another_round(story: Story) -> None:
    """A client says that its process died in a later round."""
    story.of("alpha", "resumed")["round"] = 2


@lie("every_process_died", 9)
def refused_half_of_a_round(story: Story) -> None:
    """A client refuses attempt 1 of round 0."""
    story.of("gamma", "refused")["round"] = 0


@lie("declined", 9)
def declined_plan_of_another_digest(story: Story) -> None:
    """A client declines a plan under the name of another."""
    story.of("alpha", "declined")["plan_digest"] = "ab" * 32


@lie("declined", 9)
def declined_under_another_own_key(story: Story) -> None:
    """The declined run's roster has another key for the client."""
    declined = story.of("alpha", "declined", 1)
    declined["roster"]["alpha"] = declined["roster"]["beta"]


@lie("declined", 9)
def declined_without_this_client(story: Story) -> None:
    """The declined run's roster does not have the client."""
    del story.of("alpha", "declined", 2)["roster"]["alpha"]


@lie("declined", 1)
def declined_without_a_reason(story: Story) -> None:
    """A client declines a plan for a reason that is none."""
    story.of("alpha", "declined")["reason"] = "policy_whim"


@lie("declined", 1)
def declined_by_the_server(story: Story) -> None:
    """The server declines a plan."""
    declined = story.of("alpha", "declined") | {"party": SERVER, "role": "server"}
    story.records[SERVER].insert(1, declined)


@lie("three_rounds", 9)
def totals_of_another_run(story: Story) -> None:
    """A client closes with one aborted round less."""
    story.of("alpha", "closed")["aborted"] = 0


@lie("three_rounds", 9)
def closed_with_a_smaller_epsilon(story: Story) -> None:
    """A client closes with less than it charged."""
    story.of("alpha", "closed")["spend"]["epsilon_pld"] = "0.05"


@lie("three_rounds", 9)
def totals_of_the_server(story: Story) -> None:
    """The server closes with one published round more."""
    story.of(SERVER, "closed")["published"] = 3


def earlier_sum(story: Story, **changes: object) -> None:
    """In an earlier run alpha was told of a sum; nobody else's ledger speaks of it."""
    told = dict.fromkeys(("adapter_digest", "server_head", "transcript"), OTHER)
    told |= {"survivors": ["beta", "gamma"]}
    story.of("alpha", "outcome").update(told | changes)


@lie("second_run", 7)
def survivor_outside_the_plan(story: Story) -> None:
    """A client was told of a survivor whom the plan does not know."""
    earlier_sum(story, survivors=["beta", "delta"])


@lie("second_run", 7)
def too_few_survivors_told(story: Story) -> None:
    """A client takes a sum of one for published."""
    earlier_sum(story, survivors=["beta"])


@lie("second_run", 7)
def missed_and_in_the_sum(story: Story) -> None:
    """A client says that it missed a sum of which it is a survivor."""
    earlier_sum(story, survivors=["alpha", "beta"])


@lie("second_run", 7)
def published_without_a_commit(story: Story) -> None:
    """A client is in a sum to which it sent nothing."""
    published = {"status": "published", "reason": None}
    earlier_sum(story, survivors=["alpha", "beta"], **published)
    story.of("alpha", "closed").update(published=1, missed=0)


@lie("three_rounds", 7)
def published_with_a_reason(story: Story) -> None:
    """A client is in a sum and has a reason why not."""
    story.of("alpha", "outcome", 2)["reason"] = Reason.DEADLINE.value


@lie("three_rounds", 7)
def aborted_without_a_reason(story: Story) -> None:
    """A client has no reason for the end of a round."""
    story.of("alpha", "outcome", 1)["reason"] = None


@lie("three_rounds", 8)
def head_of_nobody(story: Story) -> None:
    """The server has a ledger's head of a client that was not in the round."""
    story.of(SERVER, "published", 1)["heads"]["delta"] = OTHER


@lie("three_rounds", 9)
def lines_counted_wrong(story: Story) -> None:
    """A client closes with a line more than it has."""
    story.of("alpha", "closed")["records"] += 1


@lie("three_rounds", 9)
def closed_with_a_smaller_lifetime(story: Story) -> None:
    """A client closes with less for its lifetime than it charged."""
    story.of("alpha", "closed")["lifetime"]["epsilon_pld"] = "0.05"


@damage("three_rounds", 10)
def last_line_removed(files: Files) -> Files:
    """The line that closes the run is cut off, and its remembered head is gone."""
    return with_lines(files, ALPHA, lines_of(files, ALPHA)[:-1])


@damage("three_rounds", 10)
def last_round_removed(files: Files) -> Files:
    """A client's last round is cut off with all that follows."""
    return with_lines(files, ALPHA, lines_of(files, ALPHA)[:8])
