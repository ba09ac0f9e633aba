"""Reading `summary.json`: strict JSON, whose numbers are compared with decimals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from privacy.ledger.history import claimed_epsilon
from privacy.ledger.records import Spend


def load_json(data: bytes) -> object:
    """Strict JSON with exact numbers: no repeated keys, no NaN or infinities.

    Raises:
        ValueError, RecursionError: it is none.
    """

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(items)
        if len(table) != len(items):
            msg = "a repeated key"
            raise ValueError(msg)
        return table

    def constant(_: str) -> object:
        msg = "not a number of JSON"
        raise ValueError(msg)

    def fraction(text: str) -> Decimal:
        try:
            return Decimal(text)
        except InvalidOperation:
            msg = "an exponent beyond reading"
            raise ValueError(msg) from None

    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=pairs,
        parse_float=fraction,
        parse_constant=constant,
    )


def wrong_in(
    data: bytes,
    figures: Mapping[str, Decimal],
    repeated: Mapping[str, object],
    spends: Mapping[str, Spend],
) -> list[str]:
    """What a summary says otherwise than the ledgers, in words.

    Args:
        data: the file.
        figures: what it must say; the largest epsilon is added here.
        repeated: what stands elsewhere too, and may be left out.
        spends: of every client, at least one.
    """
    try:
        summary = load_json(data)
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        return ["not a JSON object"]
    epsilons = {name: claimed_epsilon(spend) for name, spend in spends.items()}
    figures = {"epsilon": max(epsilons.values()), **figures}
    wrong = [n for n, value in figures.items() if not _same(summary.get(n), value)]
    wrong += [n for n, v in repeated.items() if n in summary and summary[n] != v]
    found = [f"{name!r} is not what the ledgers and the plan say" for name in wrong]
    clients = summary.get("clients")
    stated: dict[object, object] = {}
    for client in clients if isinstance(clients, list) else []:
        if isinstance(client, dict) and isinstance(client.get("name"), str):
            stated[client["name"]] = client.get("epsilon")
    if not isinstance(clients, list) or len(clients) != len(epsilons):
        found.append("'clients' does not list exactly the clients of the plan")
    return found + [
        f"the epsilon of {name!r} is not its ledger's"
        for name, value in sorted(epsilons.items())
        if not _same(stated.get(name), value)
    ]


def _same(value: object, expected: Decimal) -> bool:
    """Whether a summary's number is this decimal, or the double nearest to it."""
    if expected.is_infinite():
        return value in (None, "infinity")
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return False
    try:
        return value == expected or float(value) == float(expected)
    except OverflowError:
        return False
