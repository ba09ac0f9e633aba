"""Our side of `secagg.py`: the protocol's own states over real message bytes."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.secagg_task import STEPS, Stopwatch, serve, values
from benchmarks.worker import forget_peak, held_memory, peak_memory
from privacy import codec
from privacy.crypto import Keystream, SigningKey
from privacy.packing import pack_in_place, unpack
from privacy.plan import WEIGHT_ONE
from privacy.secagg import masks
from privacy.secagg import server as server_side
from privacy.secagg.client import AwaitingSurvivors, AwaitingVector, join
from privacy.secagg.server import CollectingMasked, Unmasked, open_round
from privacy.secagg.shamir import lagrange_weights
from privacy.secagg.terms import RoundTerms
from privacy.vectors import NoisedVector, from_residues, to_residues

_ROUND = 7
_DEADLINES = (1, 2, 3, 4, 5)
_HEAD = bytes(32)
# The measured client is in the middle: it adds half of its masks, subtracts the rest.
_SCALE = Fraction(STEPS)


class OurSide:
    """One honest round, and its parties' work on the same messages again.

    Nonces and keys are drawn once: a party that starts again from the same ones sends
    the same messages, which fit those of the others.

    Args:
        dimension: d.
        neighbours: of each client; the graph is complete.
        dropouts: the numbers of lost vectors for which the server is timed.
        bits: of the modulus.
        threads: at most so many expand masks or hash vectors; None for as many as the
            product starts.
    """

    def __init__(
        self,
        *,
        dimension: int,
        neighbours: int,
        dropouts: list[int],
        bits: int,
        threads: int | None,
    ) -> None:
        if threads is not None:
            masks.MAX_THREADS = server_side.HASH_THREADS = threads
        self._dimension = dimension
        self._names = [f"client-{place:03d}" for place in range(neighbours + 1)]
        self._keys = {
            name: SigningKey(secrets.token_bytes(32))
            for name in [*self._names, "server"]
        }
        self._entropy = {name: secrets.token_bytes(32) for name in self._keys}
        self._terms = RoundTerms(
            federation="benchmark",
            plan_digest=secrets.token_bytes(32),
            adapter_digest=secrets.token_bytes(32),
            round_number=_ROUND,
            cohort={name: self._keys[name].verify_key for name in self._names},
            server=self._keys["server"].verify_key,
            min_survivors=2,
            colluders=0,
            modulus_bits=bits,
            vector_length=dimension + 1,
        )
        self._measured = self._names[len(self._names) // 2]
        # Message by phase: what the measured client gets, and what the server gets.
        self._received: dict[str, bytes] = {}
        self._replies: dict[str, dict[str, bytes]] = {}
        waiting, collecting = self._until_masked()
        self.message_bytes = len(self._replies["masked"][self._measured])
        for count in dropouts:
            self._finish(count, waiting, collecting)

    def _fresh(self, party: str) -> Callable[[int], bytes]:
        return Keystream(self._entropy[party]).read

    def _until_masked(self) -> tuple[dict[str, bytes], bytes]:
        """Run the round until every vector is masked; the states, as bytes."""
        terms, keys, names = self._terms, self._keys, self._names
        entropy = {name: self._fresh(name) for name in keys}
        server, offer = open_round(terms, keys["server"], entropy["server"], _DEADLINES)
        joined = {
            name: join(offer, terms, keys[name], entropy[name], _ROUND - 1)
            for name in names
        }
        adverts = {name: sent for name, (_, sent) in joined.items()}
        sharing, rosters = server.collect(adverts)
        dealt = {
            name: state.share_keys(rosters[name], entropy[name])
            for name, (state, _) in joined.items()
        }
        shares = {name: sent for name, (_, sent) in dealt.items()}
        collecting, inboxes = sharing.collect(shares)
        waiting, masked = {}, {}
        for name, (state, _) in dealt.items():
            after, masked[name] = state.open_inbox(inboxes[name]).mask(
                self._rounded(names.index(name))
            )
            waiting[name] = after.to_bytes()
        self._replies = {"adverts": adverts, "shares": shares, "masked": masked}
        own = self._measured
        self._received = {"offer": offer, "roster": rosters[own], "inbox": inboxes[own]}
        return waiting, collecting.to_bytes()

    def _survivors(self, dropouts: int) -> list[str]:
        """All but the last ones; the measured client is never lost."""
        return self._names[: len(self._names) - dropouts]

    def _finish(
        self, dropouts: int, waiting: dict[str, bytes], collecting: bytes
    ) -> None:
        """Run the rest with so many vectors lost, and hold the sum against integers."""
        keys, own = self._keys, self._measured
        names = self._survivors(dropouts)
        server = CollectingMasked.from_bytes(collecting, keys["server"])
        confirming, announced = server.collect(
            {name: self._replies["masked"][name] for name in names}
        )
        confirmed = {
            name: AwaitingSurvivors.from_bytes(waiting[name], keys[name]).confirm(
                announced[name]
            )
            for name in names
        }
        sent = {name: message for name, (_, message) in confirmed.items()}
        revealing, quorum = confirming.collect(sent)
        reveals = {
            name: state.reveal(quorum[name], _HEAD)[1]
            for name, (state, _) in confirmed.items()
        }
        unmasked = revealing.collect(reveals)
        self._replies[f"confirmed-{dropouts}"] = sent
        self._replies[f"reveals-{dropouts}"] = reveals
        self._received |= {
            "survivors": announced[own],
            "quorum": quorum[own],
            "published": unmasked.publish(_HEAD, _HEAD),
        }
        self._check(unmasked, names)

    def _check(self, unmasked: Unmasked, names: list[str]) -> None:
        total = np.zeros(self._terms.vector_length, np.uint32)
        for name in names:
            total += self._rounded(self._names.index(name)).residues
        total &= np.uint32(2**self._terms.modulus_bits - 1)
        if not np.array_equal(unmasked.residues, total):
            msg = "our secure sum is not the sum"
            raise RuntimeError(msg)

    def _rounded(self, client: int) -> NoisedVector:
        return self._round(values(client, self._dimension))

    def _round(self, floats: np.ndarray) -> NoisedVector:
        """Clip, round to the grid with an exact norm, reduce: the codec's own work."""
        terms = self._terms
        steps = codec.encode(
            floats,
            scale=_SCALE,
            norm_bound=isqrt(2**60 // self._dimension),
            weight=WEIGHT_ONE,
        )
        return NoisedVector(
            residues=to_residues(steps, terms.modulus_bits, 1),
            modulus_bits=terms.modulus_bits,
            plan_digest=terms.plan_digest.hex(),
            round_number=terms.round_number,
        )

    def client(self) -> Stopwatch:
        """Everything the measured client does in a round."""
        clock, own, received = Stopwatch(), self._measured, self._received
        entropy = self._fresh(own)
        floats = values(self._names.index(own), self._dimension)
        with clock.of("join"):
            joined, _ = join(
                received["offer"], self._terms, self._keys[own], entropy, _ROUND - 1
            )
        with clock.of("roster, dealing"):
            dealt, _ = joined.share_keys(received["roster"], entropy)
        with clock.of("inbox, agreement"):
            opened = dealt.open_inbox(received["inbox"])
        with clock.of("rounding"):
            noised = self._round(floats)
        with clock.of("masks, hash, message"):
            waiting, message = opened.mask(noised)
        with clock.of("consistency, reveal"):
            asked, _ = waiting.confirm(received["survivors"])
            revealed, _ = asked.reveal(received["quorum"], _HEAD)
            revealed.conclude(received["published"])
        if message != self._replies["masked"][own]:
            msg = "the same round gave another message"
            raise RuntimeError(msg)
        return clock

    def server(self, dropouts: int) -> Stopwatch:
        """Everything the server does in a round with so many vectors lost."""
        clock, replies, key = Stopwatch(), self._replies, self._keys["server"]
        # Weights are cached for a set of survivors, and a new round has a new one.
        lagrange_weights.cache_clear()
        with clock.of("keys and shares"):
            state, _ = open_round(self._terms, key, self._fresh("server"), _DEADLINES)
            sharing, _ = state.collect(replies["adverts"])
            collecting, _ = sharing.collect(replies["shares"])
        with clock.of("vectors"):
            confirming, _ = collecting.collect(
                {name: replies["masked"][name] for name in self._survivors(dropouts)}
            )
        with clock.of("consistency"):
            revealing, _ = confirming.collect(replies[f"confirmed-{dropouts}"])
        with clock.of("unmasking"):
            unmasked = revealing.collect(replies[f"reveals-{dropouts}"])
            unmasked.publish(_HEAD, _HEAD)
        with clock.of("decoding"):
            total = from_residues(unmasked.residues, self._terms.modulus_bits)
            codec.decode(total, _SCALE)
        return clock

    def sizes(self) -> dict[str, int]:
        """Bytes of the masked input, as it travels."""
        return {"message_bytes": self.message_bytes}

    def expansion(self, repeats: int) -> dict[str, list[float]]:
        """CPU seconds of the masks of one vector, and of their keystream alone.

        The keystream once in counter mode, and once as masks read it.
        """
        keys = [secrets.token_bytes(32) for _ in self._names]
        residues = np.zeros(self._terms.vector_length, np.uint32)
        # A short vector is masked several times, or the clock would be too coarse.
        times = max(1, 10**6 // len(residues))
        work: dict[str, Callable[[], None]] = {
            "counter mode": lambda: _keystreams(
                [_counter_mode(key) for key in keys], len(residues)
            ),
            "keystream": lambda: _keystreams(
                [Keystream(key).read_into for key in keys], len(residues)
            ),
            "masks": lambda: _mask(residues, keys),
        }
        taken: dict[str, list[float]] = {what: [] for what in work}
        with _threads(1):
            for _ in range(repeats):
                for what, does in work.items():
                    cpu = time.process_time()
                    for _ in range(times):
                        does()
                    taken[what].append((time.process_time() - cpu) / times)
        return taken

    def scaling(self, repeats: int, dropouts: int) -> dict[str, dict[str, list[Any]]]:
        """CPU and wall seconds of masks and of the server, by the number of threads."""
        keys = [secrets.token_bytes(32) for _ in self._names]
        residues = np.zeros(self._terms.vector_length, np.uint32)
        work: dict[str, Callable[[], object]] = {
            "masks": lambda: _mask(residues, keys),
            "server": lambda: self.server(dropouts),
        }
        taken: dict[str, dict[str, list[Any]]] = {what: {} for what in work}
        for _ in range(repeats):
            for threads in range(1, (os.cpu_count() or 1) + 1):
                for what, does in work.items():
                    with _threads(threads, at_once=what == "masks"):
                        cpu, wall = time.process_time(), time.perf_counter()
                        does()
                        pair = [time.process_time() - cpu, time.perf_counter() - wall]
                    taken[what].setdefault(str(threads), []).append(pair)
        return taken

    def floors(self, repeats: int) -> dict[str, list[float]]:
        """CPU seconds of hashing one vector, and of verifying one signature."""
        words = self._replies["masked"][self._measured]
        key, message, times = self._keys["server"], bytes(200), 100
        signature, identity = key.sign_raw(message), key.verify_key
        taken: dict[str, list[float]] = {"hash": [], "signature": []}
        for _ in range(repeats):
            cpu = time.process_time()
            hashlib.sha256(words).digest()
            taken["hash"].append(time.process_time() - cpu)
            cpu = time.process_time()
            for _ in range(times):
                identity.verify_raw(signature, message)
            taken["signature"].append((time.process_time() - cpu) / times)
        return taken

    def packing(self, repeats: int) -> dict[str, list[float]]:
        """CPU seconds of one vector to the bytes that travel, and back."""
        terms = self._terms
        residues = self._rounded(0).residues
        times = max(1, 10**6 // len(residues))
        taken: dict[str, list[float]] = {"pack": [], "unpack": []}
        for _ in range(repeats):
            # As a client does: its words are not needed any more.
            copies = [residues.copy() for _ in range(times)]
            cpu = time.process_time()
            for words in copies:
                packed = pack_in_place(words, terms.modulus_bits)
            taken["pack"].append((time.process_time() - cpu) / times)
            cpu = time.process_time()
            for _ in range(times):
                unpack(packed, terms.vector_length, terms.modulus_bits)
            taken["unpack"].append((time.process_time() - cpu) / times)
        return taken

    def memory(self) -> dict[str, float]:
        """The most memory of masking, in vectors of 4 bytes a parameter.

        The client's own vector counts as the first of them.
        """
        own, received = self._measured, self._received
        entropy = self._fresh(own)
        joined, _ = join(
            received["offer"], self._terms, self._keys[own], entropy, _ROUND - 1
        )
        dealt, _ = joined.share_keys(received["roster"], entropy)
        opened: AwaitingVector = dealt.open_inbox(received["inbox"])
        noised = self._rounded(self._names.index(own))
        vector = noised.residues.nbytes
        before = held_memory() - vector
        forget_peak()
        opened.mask(noised)
        return {"vectors": (peak_memory() - before) / vector, "vector_bytes": vector}


def _mask(residues: np.ndarray, keys: list[bytes]) -> None:
    half = len(keys) // 2
    masks.apply_masks(
        residues, added=keys[:half], subtracted=keys[half:], modulus_bits=32
    )


def _keystreams(
    streams: list[Callable[[memoryview, memoryview], int]], words: int
) -> None:
    """Keystreams in the chunks of masks into one buffer, and nothing else."""
    most = 4 * min(words, masks.CHUNK_WORDS)
    zeros = memoryview(bytes(most))
    buffer = memoryview(bytearray(most + Keystream.OVERHANG))
    for start in range(0, words, masks.CHUNK_WORDS):
        blank = zeros[: 4 * (words - start)]
        for read_into in streams:
            read_into(blank, buffer)


def _counter_mode(key: bytes) -> Callable[[memoryview, memoryview], int]:
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return encryptor.update_into


@contextmanager
def _threads(most: int, *, at_once: bool = False) -> Iterator[None]:
    """At most so many threads; `at_once`, however little there is for them."""
    before = masks.MAX_THREADS, masks.THREAD_WORDS, server_side.HASH_THREADS
    masks.MAX_THREADS = server_side.HASH_THREADS = most
    if at_once:
        masks.THREAD_WORDS = 1
    try:
        yield
    finally:
        masks.MAX_THREADS, masks.THREAD_WORDS, server_side.HASH_THREADS = before


def open_side(request: dict[str, Any]) -> OurSide:
    """The round that a request describes."""
    return OurSide(**request)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(open_side)
