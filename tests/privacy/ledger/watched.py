"""A synthetic run whose clients keep watch over the server's log."""

import shutil
from dataclasses import replace

from privacy.ledger import Ledger, Role
from privacy.ledger.checkpoint import Checkpoint, Note, log_origin, sign_checkpoint
from privacy.ledger.log_update import LogUpdate, open_update, seal_update
from privacy.ledger.merkle import Tree
from privacy.ledger.shared_log import SharedLog
from privacy.ledger.witness import Witness
from privacy.plan import SERVER
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    RUN,
    SyntheticClient,
    SyntheticRun,
)

ORIGIN = log_origin(RUN)


class Watched(SyntheticRun):
    """A run in which `show` carries the log to the clients, and what they answer back.

    Args:
        directory: of the run's folder.
    """

    def __init__(self, directory, **options):
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory, **options)
        self.open()
        self.log = self.open_log()
        self.witnesses = {name: self.open_witness(name) for name in CLIENTS}

    def open_log(self):
        keys = {name: self.keys[name].verify_key for name in CLIENTS}
        return SharedLog(self.server, self.keys[SERVER], keys)

    def open_witness(self, name):
        return Witness(self.clients[name].ledger, self.keys[name])

    def show(self, names=CLIENTS, lost=()):
        """Show the log; what clients in `lost` answer does not arrive."""
        replies = {}
        for name, update in self.log.updates(names).items():
            witness = self.witnesses[name]
            replies[name] = witness.vouch(witness.check(update))
        answered = {n: note for n, note in replies.items() if n not in lost}
        return self.log.take(answered)

    def round(self, number, survivors=CLIENTS, members=CLIENTS):
        self.gather(number, members)
        self.publish(number, survivors, members)

    def watched_rounds(self):
        """Three rounds as in `rounds`, the log shown after each."""
        self.show()
        self.round(1)
        self.show()
        self.gather(2)
        self.abort(2)
        self.show()
        self.round(3, ("alpha", "beta"))
        self.show()

    def close_clients(self):
        """The server has closed, shows all of its log, and the clients close."""
        self.show()
        for client in self.clients.values():
            client.close()

    # Parties that die, and files that are replaced.

    def path(self, name):
        return self.directory / f"ledger/{name}.jsonl"

    def save(self, name):
        """Copy a ledger and its remembered head; returns what puts them back."""
        place = self.directory.parent / f"saved-{self.directory.name}"
        place.mkdir(exist_ok=True)
        files = [self.path(name), self.path(name).with_name(f"{name}.jsonl.head")]
        for path in files:
            shutil.copyfile(path, place / path.name)

        def restore():
            for path in files:
                shutil.copyfile(place / path.name, path)

        return restore

    def restart_client(self, name, before=lambda: None):
        self.clients[name].ledger.close()
        before()
        ledger = Ledger.open(
            self.path(name), self.keys[name], party=name, role=Role.CLIENT
        )
        self.clients[name] = SyntheticClient(ledger, self.plan)
        self.witnesses[name] = self.open_witness(name)
        return self.witnesses[name]

    def restart_server(self, before=lambda: None):
        self.server.close()
        before()
        self.server = Ledger.open(
            self.path(SERVER), self.keys[SERVER], party=SERVER, role=Role.SERVER
        )
        self.log = self.open_log()

    # What a hostile server makes.

    def shown_to(self, name):
        """The honest update for a client, opened."""
        data = self.log.updates([name])[name]
        return open_update(data, self.keys[SERVER].verify_key, RUN, name)

    def sealed(self, update, name="alpha", key=None, run=RUN):
        return seal_update(update, key or self.keys[SERVER], run, name)

    def note_of(self, lines, **changes):
        """A checkpoint of these lines, signed by the server."""
        head = Checkpoint(ORIGIN, len(lines), Tree(lines).root())
        head = replace(head, **changes)
        return Note(head, (sign_checkpoint(head, head.origin, self.keys[SERVER]),))

    def update_of(self, lines, start=0, **changes):
        """An update that shows these lines as the whole log."""
        proof = Tree(lines).consistency(start, len(lines)) if start else ()
        update = LogUpdate(
            note=self.note_of(lines).to_bytes(),
            start=start,
            lines=tuple(lines[start:]),
            proof=proof,
            cosigned=b"",
        )
        return replace(update, **changes)

    def lines(self):
        return self.path(SERVER).read_bytes().splitlines()
