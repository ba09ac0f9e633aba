"""A server that tries everything that it can send.

`HostileServer.strategies` walks every way in which a server can answer each client in
each phase, with the real machines and real bytes. The walk is finite for reasons that
leave no strategy out:

* A client's answer follows from its stored state and the message, so each step is run
  once and remembered. A message that is refused ends the client's part and is the same
  as none. The server sees all that is accepted, so that whatever one decides on the
  way, in whatever order, ends as one of these choices.
* Not listening to a client never tells a server more. So it listens, and a dropout is a
  message to the others without that client.
* Clients differ by their names alone: of strategies that differ by a permutation of the
  honest clients, one is walked.
* Every message of a server is a table by client. Each is tried with every choice of
  clients in it and every message of theirs that the server has seen in this round, and,
  where all clients saw the same before, with any one entry swapped, replayed or
  altered. Two of them at once, and random bytes, are left to `test_lying_server.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, permutations, product
from operator import itemgetter
from typing import TypeAlias

from privacy.crypto import AgreementKey
from privacy.errors import PrivacyError
from privacy.plan import SERVER
from privacy.secagg import client, server
from privacy.secagg.envelope import Message, Signed, read_server, sign
from privacy.secagg.key_shares import (
    merkle_paths,
    share_leaves,
)
from privacy.secagg.messages import (
    Advert,
    Consistency,
    Delivery,
    Inbox,
    KeyShares,
    KeySharesHead,
    MaskedInput,
    Quorum,
    Roster,
    Survivors,
    header_digest,
)
from privacy.secagg.terms import RoundTerms
from privacy.wire import decode
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    Play,
    identity,
    ledger_head,
    make_vector,
)

# Keys and rosters are the same in thousands of strategies: each is read once.
key_of = cache(identity)
KEY = key_of("server")
MADE_UP = b"\x5e" * 32

# The clients of a table and the variant of each, as a reader would name them.
Choice: TypeAlias = tuple[tuple[str, object], ...]
Shelf: TypeAlias = Mapping[str, Mapping[object, object]]


@dataclass(frozen=True, slots=True)
class Part:
    """One client's part so far.

    Attributes:
        name: the client.
        told: what it accepted: offer, roster, inbox, survivors, quorum.
        heard: the messages in which it was told.
        state: the bytes that it is restored from.
        sent: its messages: advert, key shares, masked input, confirmation, reveal.
    """

    name: str
    told: tuple[int | Choice, ...]
    heard: tuple[bytes, ...] = field(repr=False)
    state: bytes = field(repr=False)
    sent: tuple[bytes, ...] = field(repr=False)

    @property
    def offer(self) -> int:
        """Which of two offers it joined."""
        return self.told[0]

    def names(self, phase: int) -> tuple[str, ...]:
        """The clients in the table that it accepted in this phase."""
        return tuple(name for name, _ in self.told[phase])

    def body(self, phase: int, kind: type[Message], head: type | None = None) -> object:
        """A message that it sent; of key shares and masked inputs, the head."""
        data = self.sent[phase]
        if head is not None:
            data = getattr(
                decode(head, data), "head" if head is KeyShares else "header"
            )
        return decode(kind, decode(Signed, data).body)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A whole round of one server.

    Attributes:
        senders: the honest clients' parts up to a masked input, by client.
        confirmers: those that went on to a confirmation; a client that could be made
            to confirm twice is there twice.
        reveals: those that went on to reveal.
    """

    senders: tuple[Part, ...]
    confirmers: tuple[Part, ...]
    reveals: tuple[Part, ...]


def tables(shelf: Shelf, wrong: Shelf) -> Iterator[Choice]:
    """Every choice of clients and variants, then every one with one wrong entry."""
    options = {
        name: [None, *((name, variant) for variant in shelf[name])]
        for name in sorted(shelf)
    }
    for picked in product(*options.values()):
        yield tuple(entry for entry in picked if entry is not None)
    for name in sorted(wrong):
        others = [options[other] for other in options if other != name]
        for variant, picked in product(wrong[name], product(*others)):
            entries = [entry for entry in picked if entry is not None]
            yield tuple(sorted([*entries, (name, variant)], key=itemgetter(0)))


def renamed(choice: int | Choice, names: Mapping[str, str]) -> object:
    """The same choice for other clients."""
    if isinstance(choice, int):
        return choice
    return sorted((names.get(name, name), str(variant)) for name, variant in choice)


def rotated(parts: Sequence[Part]) -> list[Part]:
    """Everybody's follower."""
    return [*parts[1:], parts[0]]


def earlier_round(terms: RoundTerms) -> dict[str, dict[str, Message]]:
    """By phase and client, what an honest server said in the round before."""
    play = Play(replace(terms, round_number=terms.round_number - 1))
    kinds = {"shares": Roster, "masked": Inbox, "reveal": Quorum}
    found = {}
    for phase in PHASES:
        if phase in kinds:
            digest = play.server.desk.offer_digest
            found[phase] = {
                name: read_server(message, kinds[phase], play.terms, digest)
                for name, message in play.messages.items()
            }
        play.answer(phase)
        play.collect()
    return found


class HostileServer:
    """What a server holds: its key, the colluders, and a memory of every answer.

    Attributes:
        terms: of the round.
        honest: the clients that are not the server's.
        colluding: those that are; they sign whatever it likes.
        tried: messages that were put to a client.
        refused: those that it did not answer.
    """

    def __init__(self, terms: RoundTerms) -> None:
        names = sorted(terms.cohort)
        self.terms = terms
        self.honest = tuple(names[: len(names) - terms.colluders])
        self.colluding = tuple(names[len(names) - terms.colluders :])
        made = [
            server.open_round(terms, KEY, Counter(seed), ()) for seed in ("one", "two")
        ]
        self.offers = tuple(offer for _, offer in made)
        self.digests = tuple(state.desk.offer_digest for state, _ in made)
        self.tried = self.refused = 0
        self._answers: dict[object, tuple[Part, ...]] = {}
        self._tables: dict[object, bytes] = {}
        self._deliveries: dict[tuple[bytes, str], Delivery] = {}
        self._confirmed: dict[bytes, Consistency] = {}
        # A colluder may advertise different keys to different clients.
        self.shadows = {
            (name, variant, offer): self.join(name, offer, f"{variant} {name}")
            for name in self.colluding
            for variant in (0, 1)
            for offer in (0, 1)
        }
        self.old = earlier_round(terms)

    def join(self, name: str, offer: int, seed: str) -> Part:
        """A client's part after the offer; its ledger lets it take one."""
        state, sent = client.join(
            self.offers[offer],
            self.terms,
            key_of(name),
            Counter("join " + seed),
            self.terms.round_number - 1,
        )
        heard = (self.offers[offer],)
        return Part(name, (offer,), heard, state.to_bytes(), (sent,))

    def say(self, message: Message, offer: int, name: str = SERVER) -> bytes:
        """A message under one of the offers, signed by the server or a colluder."""
        return sign(message, name, self.digests[offer], key_of(name))

    def forge(self, data: bytes, kind: type[Message], **changes: object) -> bytes:
        """A client's message with other contents, under the server's signature."""
        signed = decode(Signed, data)
        body = replace(decode(kind, signed.body), **changes)
        return sign(body, signed.sender, signed.offer_digest, KEY)

    # What a client answers.

    def ask(self, part: Part, message: bytes, choice: Choice) -> tuple[Part, ...]:
        """The client's next part, restored from its bytes, or nothing."""
        key = (part.state, message)
        if key not in self._answers:
            state = client.restore_client(part.state, key_of(part.name))
            self._answers[key] = self._answer(part, state, message, choice)
            self.tried += 1
            self.refused += not self._answers[key]
        return self._answers[key]

    def ask_again(
        self, part: Part, first: bytes, second: bytes, choice: Choice
    ) -> tuple[Part, ...]:
        """What one state of one process answers to a second message."""
        state = client.restore_client(part.state, key_of(part.name))
        self._answer(part, state, first, ())
        self.tried += 1
        answer = self._answer(part, state, second, choice)
        self.refused += not answer
        return answer

    def _answer(
        self, part: Part, state: client.ClientState, message: bytes, choice: Choice
    ) -> tuple[Part, ...]:
        name = part.name
        try:
            if isinstance(state, client.AwaitingRoster):
                following, sent = state.share_keys(message, Counter("deal " + name))
            elif isinstance(state, client.AwaitingShares):
                opened = state.open_inbox(message)
                following, sent = opened.mask(make_vector(self.terms, name))
            elif isinstance(state, client.AwaitingSurvivors):
                following, sent = state.confirm(message)
            else:
                following, sent = state.reveal(message, ledger_head(name))
        except PrivacyError:
            return ()
        return (
            Part(
                name,
                told=(*part.told, choice),
                heard=(*part.heard, message),
                state=following.to_bytes(),
                sent=(*part.sent, sent),
            ),
        )

    def accepted(
        self, part: Part, kind: type[Message], shelf: Shelf, wrong: Shelf
    ) -> list[tuple[Part, bytes]]:
        """The client's part after every table of these entries that it accepts."""
        found: dict[bytes, tuple[Part, bytes]] = {}
        for choice in tables(shelf, wrong):
            table = {
                name: shelf.get(name, {}).get(variant) or wrong[name][variant]
                for name, variant in choice
            }
            message = self.tell(part, kind, table)
            for answer in self.ask(part, message, choice):
                found.setdefault(answer.sent[-1], (answer, message))
        return list(found.values())

    def tell(
        self, part: Part, kind: type[Message], table: Mapping[str, object]
    ) -> bytes:
        """A table as the message of this kind, signed once."""
        key = (kind, part.offer, tuple(table.items()))
        if key not in self._tables:
            self._tables[key] = self.say(kind(table), part.offer)
        return self._tables[key]

    # R1: rosters of what was advertised, under either offer.

    def dealing(self, part: Part, joined: Sequence[Part], alike: bool) -> list[Part]:
        """The client's part after every roster that it accepts."""
        shelf = {other.name: {"own": other.sent[0]} for other in joined}
        for (name, variant, offer), shadow in self.shadows.items():
            if offer == part.offer:
                shelf.setdefault(name, {})[variant] = shadow.sent[0]
        wrong = {}
        for other, following in zip(joined, rotated(joined), strict=True):
            key = AgreementKey(b"k" * 32).public
            wrong[other.name] = {
                "swapped": following.sent[0],
                "altered": self.forge(other.sent[0], Advert, mask_key=key),
                "replayed": self.old["shares"][other.name].adverts[other.name],
            }
        found = self.accepted(part, Roster, shelf, wrong if alike else {})
        return [answer for answer, _ in found]

    # R2: inboxes of what was dealt, over whatever roster.

    def sending(self, part: Part, dealers: Sequence[Part], alike: bool) -> list[Part]:
        """The client's part after every inbox that it accepts."""
        shelf = {
            other.name: {"own": self.delivery(other, part.name)}
            for other in (*dealers, *self.dealing_colluders(part))
        }
        wrong = {}
        places = dict(zip(dealers, rotated(dealers), strict=True))
        for other, following in places.items():
            own = self.delivery(other, part.name)
            bad = own.sealed.ciphertext[:-1] + bytes([own.sealed.ciphertext[-1] ^ 1])
            wrong[other.name] = {
                "meant for another": self.delivery(other, places[part].name),
                "of another": self.delivery(following, part.name),
                "altered": replace(own, sealed=replace(own.sealed, ciphertext=bad)),
                "replayed": self.old["masked"][part.name].deliveries[other.name],
            }
        found = self.accepted(part, Inbox, shelf, wrong if alike else {})
        return [answer for answer, _ in found]

    def dealing_colluders(self, part: Part) -> list[Part]:
        """The colluders in a client's roster, each having dealt over that very one."""
        found = []
        for name, variant in part.told[1]:
            if name in self.colluding:
                shadow = self.shadows[name, variant, part.offer]
                found += self.ask(shadow, part.heard[1], part.told[1])
        return found

    def delivery(self, dealer: Part, holder: str) -> Delivery:
        """What a dealer dealt to this holder, or to the first if it dealt it none."""
        known = self._deliveries.get((dealer.sent[1], holder))
        if known is not None:
            return known
        message = decode(KeyShares, dealer.sent[1])
        names = dealer.names(1)
        place = names.index(holder) if holder in names else 0
        root = dealer.body(1, KeySharesHead, KeyShares).roster_hash
        leaves = share_leaves(root, dealer.name, names, message.sealed)
        path = merkle_paths(leaves)[1][place]
        made = Delivery(message.head, message.sealed[place], path)
        self._deliveries[dealer.sent[1], holder] = made
        return made

    # R4: survivors, with the headers that were sent and with made-up ones.

    def confirming(
        self, part: Part, senders: Sequence[Part], alike: bool, tampering: bool = True
    ) -> list[tuple[Part, ...]]:
        """The client's part after all survivors that it confirms: once, or twice."""
        digests = {
            other.name: header_digest(decode(MaskedInput, other.sent[2]).header)
            for other in senders
        }
        shelf = {
            name: {"own": digests[name]} if name in digests else {"made up": MADE_UP}
            for name in self.terms.cohort
        }
        wrong = {name: {"made up": MADE_UP} for name in digests}
        found = self.accepted(part, Survivors, shelf, wrong if tampering else {})
        options = [(answer,) for answer, _ in found]
        if alike:
            for (first, before), (second, after) in permutations(found, 2):
                again = self.ask_again(part, before, after, second.told[3])
                options += [(first, other) for other in again]
        return options

    # R5: quorums of the confirmations in hand, and of colluders.

    def revealing(self, part: Part, confirmers: Sequence[Part]) -> tuple[Part, ...]:
        """What the client reveals, if any quorum moves it.

        Of a confirmation that differs from the client's own only how it differs is
        remembered: which of the three sets are the same.
        """
        mine = self.sets_of(part.sent[3])
        best: dict[str, tuple[tuple[bool, ...], bytes]] = {}
        for other in confirmers:
            theirs = self.sets_of(other.sent[3])
            same = (
                theirs.roster_hash == mine.roster_hash,
                theirs.sharers_hash == mine.sharers_hash,
                theirs.survivors_hash == mine.survivors_hash,
            )
            best[other.name] = max(best.get(other.name, (same,)), (same, other.sent[3]))
        key = (part.state, frozenset((name, best[name][0]) for name in best))
        if key not in self._answers:
            self._answers[key] = self._reveal(part, mine, best)
        return self._answers[key]

    def sets_of(self, confirmation: bytes) -> Consistency:
        """The three hashes that a client signed."""
        if confirmation not in self._confirmed:
            body = decode(Signed, confirmation).body
            self._confirmed[confirmation] = decode(Consistency, body)
        return self._confirmed[confirmation]

    def _reveal(
        self,
        part: Part,
        mine: Consistency,
        best: Mapping[str, tuple[tuple[bool, ...], bytes]],
    ) -> tuple[Part, ...]:
        colluding = {name: self.say(mine, part.offer, name) for name in self.colluding}
        everything = {name: signed for name, (_, signed) in best.items()} | colluding
        agreeing = colluding | {
            name: signed for name, (same, signed) in best.items() if all(same)
        }
        both = (agreeing, everything)
        within = [
            {name: table[name] for name in table if name in part.names(3)}
            for table in both
        ]
        quorums = [*both, *within, {}]
        for name in self.honest:
            old = self.old["reveal"][name].confirmations[name]
            forged = sign(mine, name, self.digests[part.offer], KEY)
            for wrong in (old, forged, part.sent[3]):
                quorums.append(agreeing | {name: wrong})
        for table in quorums:
            choice = tuple((name, "signed") for name in sorted(table))
            answer = self.ask(part, self.tell(part, Quorum, table), choice)
            if answer:
                return answer
        return ()

    # The walk.

    def strategies(self) -> Iterator[Strategy]:
        """Every strategy, up to permutations of the honest clients."""
        for second in range(len(self.honest) // 2 + 1):
            first = len(self.honest) - second
            joined = [
                self.join(name, int(place >= first), name)
                for place, name in enumerate(self.honest)
            ]
            yield from self._from_rosters(joined, not second)

    def honest_until_survivors(self) -> Iterator[Strategy]:
        """Every strategy whose first lie are the survivors, with true headers."""
        joined = [self.join(name, 0, name) for name in self.honest]
        dealt = [self.dealing(part, joined, alike=False)[-1] for part in joined]
        sent = [self.sending(part, dealt, alike=False)[-1] for part in dealt]
        yield from self._from_survivors(sent, alike=True, tampering=False)

    def _from_rosters(self, joined: Sequence[Part], alike: bool) -> Iterator[Strategy]:
        options = [[None, *self.dealing(part, joined, alike)] for part in joined]
        for picked in self._once_renamed(product(*options)):
            dealers = [part for part in picked if part is not None]
            same = alike and self._alike(dealers)
            inboxes = [[None, *self.sending(part, dealers, same)] for part in dealers]
            for chosen in self._once_renamed(product(*inboxes)):
                senders = [part for part in chosen if part is not None]
                yield from self._from_survivors(senders, same and self._alike(senders))

    def _from_survivors(
        self, senders: Sequence[Part], alike: bool, tampering: bool = True
    ) -> Iterator[Strategy]:
        options: list[list[tuple[Part, ...]]] = [
            [(), *self.confirming(part, senders, alike, tampering)] for part in senders
        ]
        for picked in growing(options) if alike else product(*options):
            confirmers = tuple(chain.from_iterable(picked))
            reveals = chain.from_iterable(
                self.revealing(part, confirmers) for part in confirmers
            )
            yield Strategy(tuple(senders), confirmers, tuple(reveals))

    def _alike(self, parts: Sequence[Part]) -> bool:
        """Whether all honest clients are there and were told the same."""
        return len(parts) == len(self.honest) and len({p.told for p in parts}) == 1

    def _once_renamed(
        self, joint: Iterable[tuple[Part | None, ...]]
    ) -> Iterator[tuple[Part | None, ...]]:
        """One of all that differ by a permutation of the honest clients."""
        seen = set()
        orders = [
            dict(zip(self.honest, order, strict=True))
            for order in permutations(self.honest)
        ]
        for parts in joint:
            told = [(part.name, part.told) for part in parts if part is not None]
            form = min(
                repr(
                    sorted(
                        (names[name], [renamed(choice, names) for choice in choices])
                        for name, choices in told
                    )
                )
                for names in orders
            )
            if form not in seen:
                seen.add(form)
                yield parts


def growing(
    options: Sequence[Sequence[tuple[Part, ...]]],
) -> Iterator[tuple[tuple[Part, ...], ...]]:
    """Of clients that were told the same before, the orders in which survivors grow."""
    if not options:
        yield ()
        return
    for rest in growing(options[:-1]):
        for last in options[-1]:
            if not rest or sizes(rest[-1]) <= sizes(last):
                yield (*rest, last)


def sizes(parts: Sequence[Part]) -> list[int]:
    """How many survivors each confirmation counts."""
    return [len(part.told[3]) for part in parts]
