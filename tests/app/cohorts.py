"""A run of two cohorts in one process, with an exchange that tests can get between."""

import json

import torch

from fgrpo_secure.cohort import Cohort
from fgrpo_secure.config import load_config
from fgrpo_secure.folders import RunFolder, cohort_roots
from fgrpo_secure.preparation import make_plans, open_server_ledger, prepare_folders
from fgrpo_secure.secrets import identity_key, private_directory
from fgrpo_secure.server import Server
from fgrpo_secure.site import open_site
from privacy.ledger import verify_federation, verify_run
from privacy.plan import SERVER
from tests.app.federation import ALL_DRAWN, SMALL, Direct, edit_rows
from tests.end_to_end.program import records, write_config

# Sorted, so that the first three are one cohort and the last three the other.
NAMES = ("count", "count-2", "shift", "shift-2", "sort", "sums")
FIRST, SECOND = NAMES[:3], NAMES[3:]


class CohortRun:
    """A server and six clients in two cohorts of three.

    Args:
        folder: empty.
        units: by client, how many it keeps of its file.
        **settings: as `write_config` takes them.
    """

    def __init__(self, folder, *, units=None, **settings):
        federation = {"min_survivors": 2, "colluders": 0, "cohort_size": 3}
        merged = {key: dict(values) for key, values in (SMALL | ALL_DRAWN).items()}
        merged["federation"] = federation
        for section, values in settings.items():
            merged[section] = merged.get(section, {}) | values
        path = write_config(folder / "given", names=NAMES, **merged)
        for name in NAMES:
            count = (units or {}).get(name, 5)
            edit_rows(
                folder / f"given/data/{name}.jsonl", lambda rows, n=count: rows[:n]
            )
        torch.set_num_threads(1)
        self.config, _ = load_config(str(path))
        self.plans, self.policy = make_plans(self.config)
        self.root = folder / "run"
        prepare_folders(self.root, self.config, self.plans)
        roots = cohort_roots(self.root, len(self.plans))
        self.folders = [RunFolder.of(root, self.config) for root in roots]
        self.private = private_directory(self.root / SERVER)
        self.ledgers, self.spends = [], {}
        self.server = self.open_server(recover=False)
        clients = {}
        for plan, folder_of, ledger in zip(
            self.plans, self.folders, self.ledgers, strict=True
        ):
            names = [client.name for client in plan.clients]
            site = open_site(
                self.config,
                plan,
                folder_of,
                names,
                ledger.history.run,
                lambda *_: None,
                self.policy,
            )
            clients |= site._clients
        self.exchange = Direct(clients)
        self.server.recover()

    def open_server(self, *, recover=True):
        """The server as a process that has just started finds it."""
        key = identity_key(self.private)
        self.ledgers = [
            open_server_ledger(folder, plan, self.private, self.policy, key)
            for plan, folder in zip(self.plans, self.folders, strict=True)
        ]
        cohorts = [
            Cohort(
                plan=plan,
                ledger=ledger,
                key=key,
                roster=folder.roster(plan),
                deadline=60.0,
            )
            for plan, folder, ledger in zip(
                self.plans, self.folders, self.ledgers, strict=True
            )
        ]
        server = Server(
            cohorts=cohorts,
            policy=self.policy,
            settings=self.config.server,
            folder=self.private,
        )
        if recover:
            server.recover()
        return server

    def restart_server(self):
        for ledger in self.ledgers:
            ledger.close()
        self.exchange.crash = None
        self.server = self.open_server()

    def round(self, number):
        return self.server.run_round(self.exchange, number)

    def records(self, place, party=SERVER):
        return records(self.folders[place].ledger(party))

    def kinds(self, place, party=SERVER):
        return [record["kind"] for record in self.records(place, party)]

    def last(self, place, kind, party=SERVER):
        found = [r for r in self.records(place, party) if r["kind"] == kind]
        return found[-1]

    def finish(self):
        """Close every ledger, and write the summaries that a run writes."""
        for client in self.exchange.clients.values():
            client.close()
        self.server.close()
        for folder in self.folders:
            report = verify_run(folder.root, unfinished=True)
            summary = {
                "delta": float(self.plans[0].delta),
                "target_epsilon": float(self.plans[0].epsilon),
                "rounds_completed": report.published,
                "rounds_aborted": report.aborted,
            }
            write_summary(folder.root, report.spends, **summary)
            self.spends |= report.spends
        told = [record for place in (0, 1) for record in self.records(place)]
        begun = {r["round"] for r in told if r["kind"] == "round_opened"}
        moved = {r["round"] for r in told if r["kind"] in {"published", "moved"}}
        summary |= {
            "rounds_completed": len(moved),
            "rounds_aborted": len(begun - moved),
        }
        write_summary(self.root, self.spends, **summary)

    def problems(self):
        """Finish the run, and check the folder as an auditor would."""
        self.finish()
        reports, between = verify_federation(self.root)
        assert list(reports) == [folder.root.name for folder in self.folders]
        within = [problem for report in reports.values() for problem in report.problems]
        return [str(problem) for problem in (*within, *between)]

    def close(self):
        for ledger in self.ledgers:
            ledger.close()
        for client in self.exchange.clients.values():
            client._ledger.close()


def write_summary(root, spends, **terms):
    """A summary of what these clients have spent."""
    epsilons = {name: float(spend.epsilon_pld) for name, spend in spends.items()}
    clients = [{"name": name, "epsilon": value} for name, value in epsilons.items()]
    summary = {"epsilon": max(epsilons.values()), "clients": clients}
    (root / "summary.json").write_text(json.dumps(summary | terms))
