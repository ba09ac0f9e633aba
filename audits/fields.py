"""Every field of every message that clients send in a round, and what may differ.

The masked words differ with the data, as do their hash and what is signed over it.
Hashes of words that are uniform tell nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from audits.evidence import Finding, exact
from audits.rounds import Aggregated
from privacy.crypto import Label
from privacy.secagg.envelope import Signed
from privacy.secagg.messages import (
    Advert,
    Consistency,
    KeyShares,
    KeySharesHead,
    MaskedHeader,
    MaskedInput,
    Reveal,
)
from privacy.wire import decode

_MAY_DIFFER = {
    "masked-input.words",
    "masked-input.header.vector_hash",
    "masked-input.header.signature",
    "consistency.survivors_hash",
    "consistency.signature",
    "reveal.survivors_hash",
    "reveal.signature",
}


def compare_fields(
    without: Mapping[str, bytes], with_data: Mapping[str, bytes]
) -> list[Finding]:
    """Fields of all messages, as `all_fields` gives them, for two data sets."""
    shared = without.keys() & with_data.keys()
    return [
        exact(
            "fields that are there for one data set and not for the other",
            wrong=len(without.keys() ^ with_data.keys()),
        ),
        exact(
            "fields with another length for other data",
            wrong=sum(len(without[at]) != len(with_data[at]) for at in shared),
        ),
        exact(
            "fields with another value for other data, but of the masked words",
            wrong=sum(
                without[at] != with_data[at]
                for at in shared
                if at.partition("/")[2] not in _MAY_DIFFER
            ),
        ),
    ]


def all_fields(seen: Aggregated) -> dict[str, bytes]:
    """Every field of every message that clients sent, by client, phase and name."""
    found: dict[str, bytes] = {}
    for phase, messages in seen.sent.items():
        for name, message in messages.items():
            found |= {
                f"{name}/{_word(phase)}{field}": value
                for field, value in _message_fields(phase, message).items()
            }
    return found


def _word(phase: Label) -> str:
    """The last part of a label: the phase alone."""
    return phase.value.rpartition("/")[2]


def _message_fields(phase: Label, message: bytes) -> dict[str, bytes]:
    if phase is Label.MASKED_INPUT:
        masked = decode(MaskedInput, message)
        header = _signed_fields(masked.header, MaskedHeader, ".header")
        return {".words": masked.words} | header
    if phase is Label.KEY_SHARES:
        shares = decode(KeyShares, message)
        sealed = {f".sealed[{i}]": share for i, share in enumerate(shares.sealed)}
        return _signed_fields(shares.head, KeySharesHead, ".head") | {
            field: value
            for place, share in sealed.items()
            for field, value in _leaves(share, place).items()
        }
    kinds = {
        Label.ADVERT: Advert,
        Label.CONSISTENCY: Consistency,
        Label.REVEAL: Reveal,
    }
    return _signed_fields(message, kinds[phase], "")


def _signed_fields(data: bytes, kind: type, place: str) -> dict[str, bytes]:
    signed = decode(Signed, data)
    envelope = {
        field: value
        for field, value in _leaves(signed, place).items()
        if field != f"{place}.body"
    }
    return envelope | _leaves(decode(kind, signed.body), place)


def _leaves(value: object, place: str) -> dict[str, bytes]:
    """The fields of a message, as bytes."""
    if is_dataclass(value):
        return {
            at: leaf
            for item in fields(value)
            for at, leaf in _leaves(
                getattr(value, item.name), f"{place}.{item.name}"
            ).items()
        }
    if isinstance(value, tuple):
        return {
            at: leaf
            for index, item in enumerate(value)
            for at, leaf in _leaves(item, f"{place}[{index}]").items()
        }
    if isinstance(value, (bytes, memoryview)):
        return {place: bytes(value)}
    return {place: str(value).encode()}
