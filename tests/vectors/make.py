"""Write every file of vectors: `python -m tests.vectors.make`."""

from __future__ import annotations

from pathlib import Path

from tests.vectors import (
    derivations,
    encodings,
    ledger_cases,
    lies_of_client,
    lies_of_server,
    rounds,
    travel,
)

FOLDER = Path(__file__).parent


def texts() -> dict[str, str]:
    """What every file must hold, by its name."""
    made = (derivations, encodings, travel, rounds, lies_of_server, lies_of_client)
    return {
        f"{name}.json": file.text()
        for module in made
        for name, file in module.files().items()
    }


def main() -> None:
    """Write them."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, "utf-8")
    for name, data in ledger_cases.files().items():
        path = FOLDER / "ledgers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
