"""The files in tests/vectors: made again, refused as they say, and met by an oracle."""

import json

import numpy as np
import pytest

from privacy import errors
from privacy.crypto import AgreementKey, Label, VerifyKey, check_agreement_public
from privacy.errors import BelowThresholdError, FaultyClientError, PrivacyError
from privacy.packing import unpack
from privacy.rotation import Rotation
from privacy.secagg.key_shares import (
    Direction,
    SealedShare,
    merkle_climb,
    open_share,
)
from privacy.secagg.masks import MaskContext
from privacy.secagg.messages import read_aborted, read_advert
from privacy.secagg.shamir import check_element
from privacy.wire import decode, parse_canonical_json, parse_rational
from tests.privacy.secagg import oracle
from tests.privacy.secagg.harness import identity, join, ledger_head
from tests.privacy.secagg.second import Second
from tests.vectors import encodings, lies, rounds
from tests.vectors.make import FOLDER, texts

TEXTS = texts()
FILES = {name: json.loads(text) for name, text in TEXTS.items()}
raw = bytes.fromhex


def bad_cases(*names):
    return [
        pytest.param(case, id=f"{name}-{case['name']}")
        for name in names
        for case in FILES[f"{name}.json"]["bad"]
    ]


def valid(name):
    return {case["name"]: case for case in FILES[f"{name}.json"]["valid"]}


def raises(case):
    """Exactly the class that the case names: a subclass would blame somebody else."""
    kind = getattr(errors, case["error"])
    assert issubclass(kind, PrivacyError)
    return pytest.raises(kind, check=lambda error: type(error) is kind)


def test_every_file_is_what_the_program_writes():
    assert sorted(path.name for path in FOLDER.glob("*.json")) == sorted(TEXTS)
    for name, text in TEXTS.items():
        assert (FOLDER / name).read_bytes() == text.encode(), (
            f"{name} is not what `python -m tests.vectors.make` writes"
        )


def test_the_vectors_are_small():
    assert sum(len(text) for text in TEXTS.values()) < 400_000


def test_every_bad_case_says_so():
    for file in FILES.values():
        assert all(case["name"].startswith("bad_") for case in file["bad"])
        assert not any(case["name"].startswith("bad_") for case in file["valid"])


@pytest.mark.parametrize("case", bad_cases("encodings"))
def test_bytes_that_are_no_encoding_are_refused(case):
    with raises(case):
        decode(encodings.KINDS[case["kind"]], raw(case["bytes"]))


@pytest.mark.parametrize("case", FILES["encodings.json"]["valid"], ids=str)
def test_an_encoding_is_read_as_what_it_says(case):
    record = decode(encodings.KINDS[case["kind"]], raw(case["bytes"]))
    assert record == encodings.example(type(record), case["kind"])


@pytest.mark.parametrize("case", bad_cases("json"))
def test_json_in_another_form_is_refused(case):
    with raises(case):
        if "bytes" in case:
            parse_canonical_json(raw(case["bytes"]))
        else:
            parse_rational(case["rational"])


@pytest.mark.parametrize("case", bad_cases("keys"))
def test_bad_keys_and_signatures_are_refused(case):
    with raises(case):
        if "signature" in case:
            key, parts = VerifyKey(raw(case["public"])), map(raw, case["parts"])
            key.verify(raw(case["signature"]), Label(case["label"]), *parts)
        elif "identity" in case:
            VerifyKey(raw(case["identity"]))
        else:
            check_agreement_public(raw(case["peer_public"]))


@pytest.mark.parametrize("case", bad_cases("shamir"))
def test_bad_shares_are_refused(case):
    with raises(case):
        check_element(raw(case["share"]))


@pytest.mark.parametrize("case", bad_cases("packing"))
def test_bytes_that_are_no_packed_words_are_refused(case):
    with raises(case):
        unpack(raw(case["packed"]), case["length"], case["modulus_bits"])


@pytest.mark.parametrize("case", bad_cases("masks"))
def test_no_mask_is_agreed_with_a_bad_key(case):
    own, peer = AgreementKey(raw(case["own_seed"])), raw(case["peer_public"])
    with raises(case):
        MaskContext(*[bytes(32)] * 4).pairwise_key(own, ("a", own.public), ("b", peer))


@pytest.mark.parametrize("case", bad_cases("key_shares"))
def test_bad_dealings_are_refused(case):
    with raises(case):
        if "path" in case:
            path = [raw(node) for node in case["path"]]
            merkle_climb(raw(case["leaf"]), case["place"], case["count"], path)
        else:
            open_share(
                SealedShare(*map(raw, case["sealed"].values())),
                direction_of(case),
                AgreementKey(raw(case["holder_seed"])),
                raw(case["dealer_public"]),
            )


def direction_of(case):
    bound = case["direction"]
    return Direction(raw(bound["roster_hash"]), bound["dealer"], bound["holder"])


# What the parties of a round refuse.


def message_of(case):
    """A refused message, from the honest one and its edits."""
    honest = raw(valid("round")[case["honest"]]["message"])
    changes = [(at, gone, raw(new)) for at, gone, new in case["edits"]]
    return lies.edited(honest, changes)


def acts():
    """What a client does with each kind of message, from the state that awaits it."""
    name, key = lies.NAME, identity(lies.NAME)
    digest = rounds.until("shares").server.desk.offer_digest

    def state(phase, **options):
        waiting = rounds.until(phase, **options).clients[name]
        return type(waiting).from_bytes(waiting.to_bytes(), key)

    return {
        "offer": lambda data: join(name, data, rounds.TERMS),
        "roster": lambda data: state("shares").share_keys(data, bytes),
        "key-share-inbox": lambda data: state("masked").open_inbox(data),
        "survivors": lambda data: state("consistency").confirm(data),
        "quorum": lambda data: state("reveal").reveal(data, ledger_head(name)),
        "published": lambda data: state("reveal", answered=True).conclude(data),
        "aborted": lambda data: read_aborted(data, rounds.TERMS, digest),
    }


def kind_of(case):
    return case["name"].removeprefix("bad_").partition(":")[0]


@pytest.mark.parametrize("case", bad_cases("refused_by_client"))
def test_a_client_refuses(case):
    with raises(case):
        acts()[kind_of(case)](message_of(case))


def test_a_client_accepts_the_honest_messages():
    # Else the cases above could be refused for a reason that all of them share.
    honest = {kind_of(case): case["honest"] for case in FILES[CLIENT_FILE]["bad"]}
    assert honest.keys() == acts().keys()
    for kind, name in honest.items():
        acts()[kind](raw(valid("round")[name]["message"]))


CLIENT_FILE, SERVER_FILE = "refused_by_client.json", "refused_by_server.json"
SERVER_PHASES = {
    "advert": "advert",
    "key-shares": "shares",
    "masked-input": "masked",
    "consistency": "consistency",
    "reveal": "reveal",
}


@pytest.mark.parametrize("case", bad_cases("refused_by_server"))
def test_the_server_refuses_and_names_the_client(case):
    phase, message = SERVER_PHASES[kind_of(case)], message_of(case)
    play = rounds.until(phase, answered=True)
    state = play.server
    with raises(case) as caught:
        if phase == "advert":
            digest = state.desk.offer_digest
            read_advert(message, lies.NAME, rounds.TERMS, digest)
        else:
            state._check(lies.NAME, message)
    error = caught.value
    ours = isinstance(error, FaultyClientError)
    play.replies[lies.NAME] = message
    told = error.reason if ours else f"sent {error}"
    if phase in ("advert", "shares", "masked"):
        # Three of four are left, which is as few as it takes.
        assert state.collect(play.replies)[0].blamed == {lies.NAME: told}
    else:
        # One has dropped out by then.
        with pytest.raises(BelowThresholdError, match=f"to blame: {lies.NAME}"):
            state.collect(play.replies)


def test_the_server_accepts_the_honest_replies():
    for case in FILES[SERVER_FILE]["bad"]:
        honest = raw(valid("round")[case["honest"]]["message"])
        play = rounds.until(SERVER_PHASES[kind_of(case)], answered=True)
        assert play.replies[lies.NAME] == honest


# A second implementation, from the words of docs/protocol.md.


def test_the_oracle_meets_the_derivations():
    for case in valid("labels").values():
        if "framed" in case:
            parts = [raw(part) for part in case["parts"]]
            assert oracle.framed(case["label"], *parts).hex() == case["framed"]
            assert oracle.sha256(case["label"], *parts).hex() == case["sha256"]
    for case in valid("shamir").values():
        places = range(1, len(case["shares"]) + 1)
        shares = [oracle.share(raw(case["secret"]), case["drawn"], x) for x in places]
        assert [share.hex() for share in shares] == case["shares"]
        points = {x: shares[x - 1] for x in case["combined_from"]}
        assert oracle.interpolated(points).hex() == case["combined"] == case["secret"]
    for name, case in valid("key_shares").items():
        if name.startswith("tree"):
            leaves = [raw(leaf) for leaf in case["leaves"]]
            assert oracle.tree(leaves).hex() == case["root"]


def test_the_oracle_meets_the_masks():
    cases = valid("masks")
    case = cases["pairwise key"]
    context = tuple(raw(part) for part in case["context"].values())
    ends = [
        (case["lower"], raw(case["lower_public"])),
        (case["higher"], raw(case["higher_public"])),
    ]
    for seed, peer in (("lower_seed", 1), ("higher_seed", 0)):
        key = oracle.pairwise_key(raw(case[seed]), ends, ends[peer][1], context)
        assert key.hex() == case["key"]
    own = oracle.self_key(raw(cases["self key"]["b"]), "client-a", context)
    assert own.hex() == cases["self key"]["key"]
    stream = oracle.words(key, 18)
    assert (
        b"".join(w.to_bytes(4, "little") for w in stream).hex()
        == (cases["keystream"]["stream"])
    )
    for name, case in cases.items():
        if name.startswith("residues"):
            size, modulus = len(case["words"]), 2 ** case["modulus_bits"]
            triples = zip(
                case["words"],
                oracle.words(own, size),
                oracle.words(key, size),
                strict=True,
            )
            for place, (word, b, pair) in enumerate(triples):
                lower, higher = (word + b + pair) % modulus, (word + b - pair) % modulus
                assert case["masked_by_the_lower"][place] == lower
                assert case["masked_by_the_higher"][place] == higher


def test_the_oracle_packs_the_same_bytes():
    for case in valid("packing").values():
        words, bits = case["words"], case["modulus_bits"]
        assert oracle.packed(words, bits).hex() == case["packed"]
        assert unpack(raw(case["packed"]), len(words), bits).tolist() == words


def test_the_oracle_rotates_alike():
    for case in valid("rotation").values():
        vector = case["vector"]
        blocks, turned = oracle.rotated(raw(case["offer_digest"]), vector)
        assert blocks == case["signs"]
        assert turned == pytest.approx(case["rotated"], rel=1e-12, abs=1e-12)
        back = Rotation.of_round(raw(case["offer_digest"]), len(vector)).inverse(
            np.array(case["rotated"])
        )
        assert back.tolist() == pytest.approx(vector, abs=1e-12)


def test_a_second_implementation_plays_the_whole_round():
    given = valid("round")
    found = Second(given).play()
    assert found.keys() == {name for name, case in given.items() if "message" in case}
    for name, message in found.items():
        assert message.hex() == given[name]["message"], name
