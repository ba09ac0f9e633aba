"""The state machines of both sides, driven by hypothesis in any order it can think of.

`Network` has honest parties and somebody between them who drops, replays, swaps and
alters what they send. `HostileServer` has the server's key, and that of a colluder, and
shows every client whatever sets it likes. Every state goes through its bytes between
two steps, and a state that has answered is asked again.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from privacy.errors import BelowThresholdError, PrivacyError, ReplayError
from privacy.plan import SERVER
from privacy.secagg import client as client_side
from privacy.secagg import server as server_side
from privacy.secagg.envelope import Signed, sign
from privacy.secagg.key_shares import merkle_paths, share_leaves
from privacy.secagg.messages import (
    Consistency,
    Delivery,
    Inbox,
    KeyShares,
    MaskedInput,
    Published,
    Quorum,
    Reveal,
    Roster,
    Survivors,
    header_digest,
    make_roster,
    read_advert,
)
from privacy.wire import decode
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    Play,
    identity,
    join,
    ledger_head,
    make_terms,
    make_vector,
    plain_sum,
)

ENDED = "ended"
STEPS = {
    client_side.AwaitingRoster: "share_keys",
    client_side.AwaitingShares: "open_inbox",
    client_side.AwaitingSurvivors: "confirm",
    client_side.AwaitingQuorum: "reveal",
    client_side.Revealed: "conclude",
}


class Party:
    """An honest client: its stored bytes, and what it has answered."""

    def __init__(self, name, terms):
        self.name, self.terms, self.key = name, terms, identity(name)
        self.stored = None
        self.kind = None
        self.answers = {}

    @property
    def waits_for(self):
        """The method that its next message goes to."""
        if self.kind in (None, ENDED):
            return "join" if self.kind is None else None
        return STEPS[self.kind]

    def state(self):
        return self.kind.from_bytes(self.stored, self.key)

    def hear(self, message):
        """Answer a message as the runtime does; an error ends the client's part.

        Returns:
            What it sends, `None` where it sends nothing.
        """
        step = self.waits_for
        state = self.state() if step != "join" else None
        try:
            following, sent = self._answer(step, state, message)
        except PrivacyError:
            self.kind = ENDED
            return None
        finally:
            self._ask_again(step, state, message)
        assert step not in self.answers, "a client answers a phase once"
        self.answers[step] = (message, sent)
        if isinstance(following, Published):
            self.kind = ENDED
        else:
            self.kind, self.stored = type(following), following.to_bytes()
        return sent

    def _answer(self, step, state, message):
        name = self.name
        if step == "join":
            return join(name, message, self.terms)
        if step == "share_keys":
            return state.share_keys(message, Counter("deal " + name))
        if step == "open_inbox":
            opened = state.open_inbox(message)
            opened = type(opened).from_bytes(opened.to_bytes(), self.key)
            return opened.mask(make_vector(self.terms, name))
        if step == "confirm":
            return state.confirm(message)
        if step == "reveal":
            return state.reveal(message, ledger_head(name))
        return state.conclude(message), None

    def _ask_again(self, step, state, message):
        """A used state refuses, whatever it answered and whatever it is asked."""
        if step == "join":
            return
        try:
            self._answer(step, state, message)
        except ReplayError:
            return
        msg = f"a state answered {step} twice"
        raise AssertionError(msg)


def altered(draw, message):
    """The message with a byte flipped, cut off or added, as often near its end."""
    how = draw(st.sampled_from(["flip", "flip", "flip", "cut", "extend"]))
    last = len(message) - 1
    place = draw(st.integers(0, last) | st.integers(max(0, last - 12), last))
    if how == "cut":
        return message[:place]
    if how == "extend":
        return message[:place] + b"\0" + message[place:]
    changed = bytearray(message)
    changed[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def label_of(message):
    """What kind of message the server sent."""
    return decode(Signed, message).label


@cache
def earlier_round(count, colluders):
    """What everybody sent in the round before: replies by phase, mail by label."""
    terms = make_terms(
        count, colluders=colluders, vector_length=3, modulus_bits=20, round_number=6
    )
    play, mail, replies = Play(terms, restoring=False), {}, {}
    for phase in PHASES:
        for message in play.messages.values():
            mail.setdefault(label_of(message), []).append(message)
        play.answer(phase)
        replies[phase] = list(play.replies.values())
        play.collect()
    return mail, replies


class Network(RuleBasedStateMachine):
    """Honest parties; whoever carries the messages is not.

    It has a whole earlier round to replay from.
    """

    @initialize(
        size=st.sampled_from([(3, 0), (4, 0), (4, 1), (5, 0), (5, 1)]),
        faults=st.integers(0, 3),
    )
    def begin(self, size, faults):
        count, colluders = size
        self.faults = faults
        self.terms = make_terms(
            count, colluders=colluders, vector_length=3, modulus_bits=20
        )
        self.server, offer = server_side.open_round(
            self.terms, identity(SERVER), Counter("server"), ()
        )
        self.parties = {name: Party(name, self.terms) for name in self.terms.cohort}
        # What the server wrote to each, the last of it, and all there ever was.
        self.mail = {name: [offer] for name in self.parties}
        self.waiting = dict.fromkeys(self.parties, offer)
        self.asked = set(self.parties)
        self.phase, self.replies, self.over = 0, {}, False
        mail, replies = earlier_round(*size)
        self.mail_seen = {label: list(sent) for label, sent in mail.items()}
        self.replies_seen = {phase: list(sent) for phase, sent in replies.items()}
        self.see(offer)

    def see(self, message):
        self.mail_seen.setdefault(label_of(message), []).append(message)

    def fault(self, data):
        """Whom the network harms next, if anybody; a round survives only a few."""
        if self.faults == 0 or data.draw(st.booleans()):
            return None
        self.faults -= 1
        return data.draw(st.sampled_from(sorted(self.parties)))

    @rule(data=st.data())
    def a_phase_passes(self, data):
        victim = self.fault(data)
        if victim is not None and self.parties[victim].waits_for:
            self.hears_something(data, self.parties[victim])
        slow = self.fault(data)
        for party in self.parties.values():
            late = party.name in self.replies or party.name == slow
            if party.waits_for and not late:
                self.give(party, self.waiting[party.name])
        if not self.over:
            self.collect(*self.carried(data))

    def hears_something(self, data, party):
        message = self.waiting[party.name]
        how = data.draw(st.sampled_from(["own", "alike", "any", "altered"]))
        if how == "alike":
            message = data.draw(st.sampled_from(self.mail_seen[label_of(message)]))
        elif how == "any":
            pool = [one for sent in self.mail_seen.values() for one in sent]
            message = data.draw(st.sampled_from(pool))
        elif how == "altered":
            message = altered(data.draw, message)
        self.give(party, message)

    def give(self, party, message):
        before = set(party.answers)
        sent = party.hear(message)
        if set(party.answers) != before:
            assert message in self.mail[party.name], "it was never written to it"
        if sent is not None:
            self.replies[party.name] = sent

    def carried(self, data):
        """The replies as they arrive, and whose arrive as they were sent."""
        # A late answer to an earlier phase is not one to this.
        genuine = set(self.replies) & self.asked
        replies = dict(self.replies)
        phase = PHASES[self.phase]
        self.replies_seen[phase] += replies.values()
        victim = self.fault(data)
        if victim is not None:
            genuine.discard(victim)
            lies = ["altered", "altered", "nothing", "alike", "any"]
            how = data.draw(st.sampled_from(lies))
            if how == "alike":
                pool = self.replies_seen[phase]
                replies[victim] = data.draw(st.sampled_from(pool))
            elif how == "any":
                pool = [one for sent in self.replies_seen.values() for one in sent]
                replies[victim] = data.draw(st.sampled_from(pool))
            elif how == "altered" and victim in replies:
                replies[victim] = altered(data.draw, replies[victim])
            else:
                replies.pop(victim, None)
        return replies, genuine

    def collect(self, replies, genuine):
        state = type(self.server).from_bytes(self.server.to_bytes(), identity(SERVER))
        blamed = set(state.blamed)
        try:
            result = state.collect(replies)
        except BelowThresholdError:
            self.over = True
            return
        self.replies = {}
        self.phase += 1
        if isinstance(result, server_side.Unmasked):
            self.server, self.over = result, True
            self.check_sum(result)
            message = result.publish(bytes(32), ledger_head(SERVER))
            messages = dict.fromkeys(result.survivors, message)
        else:
            self.server, messages = result
        assert not (set(self.server.blamed) - blamed) & genuine
        self.asked = set(messages)
        for name, message in messages.items():
            self.waiting[name] = message
            self.mail[name].append(message)
            self.see(message)

    def check_sum(self, unmasked):
        """The sum is that of the survivors' own vectors, all of them and no other."""
        assert len(unmasked.survivors) >= self.terms.min_survivors
        for name in unmasked.survivors:
            assert "open_inbox" in self.parties[name].answers
        expected = plain_sum(self.terms, unmasked.survivors)
        assert np.array_equal(unmasked.residues, expected)


def body_of(kind, message):
    return decode(kind, decode(Signed, message).body)


class HostileServer(RuleBasedStateMachine):
    """The server signs what it likes, and has the keys of a colluder."""

    @initialize(
        size=st.sampled_from([(3, 0, 2), (4, 0, 2), (4, 1, 2), (5, 0, 4), (5, 1, 2)])
    )
    def begin(self, size):
        count, colluders, least = size
        self.terms = make_terms(
            count, colluders=colluders, min_survivors=least, vector_length=2
        )
        state, offer = server_side.open_round(
            self.terms, identity(SERVER), Counter("server"), ()
        )
        self.digest = state.desk.offer_digest
        self.names = sorted(self.terms.cohort)
        # A colluder runs honest code here, and signs and shows all else beside it.
        self.colluders = self.names[:colluders]
        self.honest = self.names[colluders:]
        self.parties = {name: Party(name, self.terms) for name in self.names}
        self.adverts = {name: self.parties[name].hear(offer) for name in self.names}
        self.rosters, self.dealt, self.deals = {}, {}, {}
        self.headers, self.confirmed, self.sums = {}, {}, {}
        # By honest dealer: who revealed which of its two shares.
        self.revealed = {name: {"b": set(), "key": set()} for name in self.honest}
        self.opened = {}

    def told(self, message):
        return sign(message, SERVER, self.digest, identity(SERVER))

    def audience(self, data, waiting, names):
        """Some who wait, each with the set that is shown to it: one of two sets.

        Nearly always one that it is in itself: any other is refused at once.
        """
        sets = self.most(data, names), self.most(data, names)
        split = data.draw(st.booleans())
        for name in self.some(data, waiting):
            members = set(sets[split and data.draw(st.integers(0, 1))])
            if data.draw(st.integers(0, 19)):
                members |= {name}
            yield name, sorted(members)

    def holds_back(self, data, name, members):
        """Rather than lose a client by showing it too few, the server waits."""
        roster = self.rosters.get(name)
        least = self.terms.least_clients(roster.threshold if roster else 3)
        return len(members) < least and data.draw(st.integers(0, 5))

    def some(self, data, names):
        """At least one of them; as often all."""
        if data.draw(st.integers(0, 3)):
            return names
        return sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)))

    def most(self, data, names):
        """All but one, or all: fewer are nearly always refused."""
        gone = data.draw(st.sampled_from([None, *names]))
        return [name for name in names if name != gone]

    def waiting_for(self, step):
        return [n for n in self.names if self.parties[n].waits_for == step]

    @rule(data=st.data())
    def says_something_to_some(self, data):
        """Six more messages, each to clients that wait for its kind."""
        acts = {
            "reveal": self.shows_a_quorum,
            "confirm": self.announces_survivors,
            "open_inbox": self.forwards_shares,
            "share_keys": self.shows_a_roster,
        }
        for _ in range(6):
            possible = [step for step in acts if self.waiting_for(step)]
            if possible:
                step = data.draw(st.sampled_from(possible))
                acts[step](data, self.waiting_for(step))

    def shows_a_roster(self, data, waiting):
        for name, members in self.audience(data, waiting, self.names):
            if self.holds_back(data, name, members):
                continue
            adverts = {peer: self.adverts[peer] for peer in members}
            sent = self.parties[name].hear(self.told(Roster(adverts)))
            if sent is not None:
                self.dealt[name] = sent
                read = {
                    peer: read_advert(signed, peer, self.terms, self.digest)
                    for peer, signed in adverts.items()
                }
                self.rosters[name] = make_roster(self.terms, self.digest, adverts, read)

    def delivery(self, dealer, holder):
        """What a dealer dealt to a holder, with its path."""
        message, roster = decode(KeyShares, self.dealt[dealer]), self.rosters[dealer]
        leaves = share_leaves(roster.roster_hash, dealer, roster.names, message.sealed)
        place = roster.names.index(holder)
        path = merkle_paths(leaves)[1][place]
        return Delivery(message.head, message.sealed[place], path)

    def forwards_shares(self, data, waiting):
        for name, members in self.audience(data, waiting, sorted(self.dealt)):
            # Shares over another roster than its own are refused at once.
            same = bool(data.draw(st.integers(0, 19)))
            dealers = [
                peer
                for peer in members
                if peer in self.dealt
                and name in self.rosters[peer].names
                and (self.rosters[peer] == self.rosters[name] or not same)
            ]
            if self.holds_back(data, name, dealers):
                continue
            inbox = {dealer: self.delivery(dealer, name) for dealer in dealers}
            sent = self.parties[name].hear(self.told(Inbox(inbox)))
            if sent is not None:
                self.headers[name] = decode(MaskedInput, sent).header
                self.deals[name] = dealers

    def announces_survivors(self, data, waiting):
        for name, sent in self.audience(data, waiting, sorted(self.headers)):
            # Nor does any client confirm survivors that dealt nothing to it.
            members = [peer for peer in sent if peer in self.deals[name]]
            if self.holds_back(data, name, members):
                continue
            headers = {peer: header_digest(self.headers[peer]) for peer in members}
            given = self.parties[name].hear(self.told(Survivors(headers)))
            if given is not None:
                self.confirmed.setdefault(name, []).append(given)
                self.sums[name] = members
        # A colluder signs whatever it is told to, as often as it is told to.
        seen = [given[0] for given in self.confirmed.values() if given]
        for name in self.colluders:
            given = self.confirmed.setdefault(name, [])
            for other in seen:
                agreed = body_of(Consistency, other)
                again = sign(agreed, name, self.digest, identity(name))
                if again not in given:
                    given.append(again)

    def shows_a_quorum(self, data, waiting):
        for name in self.some(data, waiting):
            self.shows_one_a_quorum(data, name)

    def shows_one_a_quorum(self, data, name):
        seen = body_of(Consistency, self.confirmed[name][0])
        quorum = {}
        for peer, given in sorted(self.confirmed.items()):
            fitting = [one for one in given if body_of(Consistency, one) == seen]
            how = data.draw(st.sampled_from(["fitting"] * 18 + ["any", "nothing"]))
            options = {"fitting": fitting, "any": given, "nothing": []}[how]
            if options:
                quorum[peer] = data.draw(st.sampled_from(options))
        if len(quorum) < self.rosters[name].threshold and data.draw(st.integers(0, 9)):
            return
        sent = self.parties[name].hear(self.told(Quorum(quorum)))
        if sent is not None:
            self.take(name, body_of(Reveal, sent), seen)

    def take(self, name, reveal, seen):
        """Note which share of whom a client has shown."""
        sharers, survivors = self.deals[name], self.sums[name]
        assert len(reveal.shares) == len(sharers)
        for dealer in sharers:
            if dealer in self.revealed:
                kind = "b" if dealer in survivors else "key"
                self.revealed[dealer][kind].add(name)
        if name in self.honest:
            self.opened.setdefault(seen.roster_hash, set()).add(seen.survivors_hash)

    @invariant()
    def nobody_is_opened_twice(self):
        """The server never has t shares of both kinds, the colluders' own included."""
        for dealer, kinds in getattr(self, "revealed", {}).items():
            roster = self.rosters.get(dealer)
            if roster is None:
                continue
            bad = set(self.colluders) & set(roster.names)
            complete = [
                len(holders | bad) >= roster.threshold for holders in kinds.values()
            ]
            assert not all(complete), f"both secrets of {dealer} can be rebuilt"

    @invariant()
    def one_roster_opens_one_sum(self):
        assert all(len(hashes) == 1 for hashes in getattr(self, "opened", {}).values())

    @invariant()
    def every_opened_sum_is_large_enough(self):
        for name, party in getattr(self, "parties", {}).items():
            if "reveal" in party.answers:
                least = self.terms.least_clients(self.rosters[name].threshold)
                assert len(self.sums[name]) >= least


# What the last phase explains costs minutes, and the steps are plain without it.
SETTINGS = settings(
    max_examples=150,
    stateful_step_count=24,
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
TestNetwork = Network.TestCase
TestNetwork.settings = SETTINGS
TestHostileServer = HostileServer.TestCase
TestHostileServer.settings = SETTINGS
