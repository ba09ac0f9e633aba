"""One server and three sites as processes with homes of their own, over mutual TLS."""

import json
import shutil
import socket
import ssl

import pytest

from audits.verify_ledger import main as verify_alone
from fgrpo_secure.cli import main
from fgrpo_secure.pilot import enrol
from fgrpo_secure.pilot.engine import Engine, EngineError
from fgrpo_secure.secrets import private_directory
from privacy.plan import SERVER
from tests.pilot.stage import LEAD, RUN, SITES, Stage, fgrpo, playing, until

pytest.importorskip("nvflare", reason="the extra [nvflare] is not installed")

ROUNDS = 2


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(
        tmp_path_factory.mktemp("pilot"), enrolled=True, privacy={"rounds": ROUNDS}
    )


@pytest.fixture(scope="module")
def cast(stage):
    with playing(stage) as players:
        players.start_all()
        yield players


@pytest.fixture(scope="module")
def followed(cast):
    """What the lead sees of the run, from submission to its end."""
    lead = cast.submit()
    told, _ = lead.communicate(timeout=400)
    return lead.returncode, told


@pytest.fixture(scope="module")
def collected(stage, followed):
    """The folder of the finished run, as the lead fetched it."""
    output = stage.folder / "collected"
    lead = stage.homes / LEAD
    fgrpo("pilot", "collect", RUN, "--home", lead, "--output", output)
    return output


def test_the_lead_sees_the_run_to_its_end(followed):
    status, told = followed
    assert status == 0, told
    assert "FINISHED:COMPLETED" in told


def test_both_verifiers_accept_what_was_collected(collected, capsys):
    assert main(["ledger", "verify", str(collected)]) == 0
    assert f"{ROUNDS} rounds published" in capsys.readouterr().out
    assert verify_alone([str(collected)]) == 0


def test_the_plan_is_the_one_of_a_run_on_one_machine(stage, collected):
    summary = json.loads((collected / "summary.json").read_text("utf-8"))
    assert summary["plan_digest"] == stage.local_plan().digest


def test_the_folder_is_laid_out_as_that_of_a_run_on_one_machine(collected):
    names = {str(p.relative_to(collected)) for p in collected.rglob("*") if p.is_file()}
    expected = {"summary.json", "plan.json", "config.toml", "server/rounds.jsonl"}
    expected |= {f"ledger/{name}.jsonl" for name in (*SITES, SERVER)}
    expected |= {f"keys/{name}.pub" for name in (*SITES, SERVER)}
    assert expected <= names
    assert "adapter/adapter_model.safetensors" in names


def test_scores_of_public_sets_are_in_the_summary(collected):
    summary = json.loads((collected / "summary.json").read_text("utf-8"))
    for client in summary["clients"]:
        assert client["reward_before"] is not None
        assert client["reward_after"] is not None


def test_no_private_file_of_the_server_is_collected(collected):
    assert not list(collected.rglob("identity.key"))
    for line in (collected / "server" / "rounds.jsonl").read_text().splitlines():
        assert json.loads(line)["seconds"] == {}


def test_each_site_kept_its_own_ledger_as_it_was_collected(stage, collected):
    for site in SITES:
        own = stage.home(site).private / "ledger" / f"{site}.jsonl"
        assert own.read_bytes() == (collected / "ledger" / f"{site}.jsonl").read_bytes()


# How HTTP/2, and so gRPC, begins: the preface and empty settings.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


def handshake(stage, folder=None):
    """Connect to the server's port, with the certificate of a kit or with none."""
    home = stage.home(SITES[0])
    context = ssl.create_default_context(
        cafile=str(home.kit / "startup" / "rootCA.pem")
    )
    context.set_alpn_protocols(["h2"])
    if folder is not None:
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    with (
        socket.create_connection(("localhost", home.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        # With TLS 1.3 the server's verdict comes with the first that is read.
        wrapped.settimeout(10)
        wrapped.sendall(GREETING)
        return wrapped.recv(1)


def refused(stage, folder, why):
    """Whether the server hangs up on a certificate.

    Its reason is lost where the connection is reset before it is read.
    """
    try:
        return handshake(stage, folder) == b""
    except ssl.SSLError as error:
        return any(one in str(error).lower() for one in why)
    except ConnectionError:
        return True


def test_the_certificate_of_a_site_gets_it_through(stage, followed):
    assert handshake(stage, stage.home(SITES[0]).kit / "startup")


def test_without_a_certificate_nobody_gets_through(stage, followed):
    assert refused(stage, None, ["certificate required"])


def test_the_certificate_of_another_pilot_gets_nobody_through(
    stage, followed, tmp_path
):
    other = tmp_path / "PILOT.toml"
    shutil.copy(stage.folder / "PILOT.toml", other)
    pilot = enrol.init_pilot(other, tmp_path / "pilot")
    from fgrpo_secure.pilot.rehearsal import provision_here

    provision_here(pilot, tmp_path / "homes")
    kit = tmp_path / "homes" / SITES[0] / "kit"
    assert refused(stage, kit / "startup", ["unknown ca", "decrypt error"])


CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from fgrpo_secure.runtime.nvflare import PilotExecutor
"""


def test_a_job_that_carries_code_runs_at_no_site(stage, followed, tmp_path):
    """The lead's own key submits it, and the server would take it."""
    source = stage.home(LEAD).run(RUN) / "job"
    job = tmp_path / "job"
    shutil.copytree(source, job)
    marker = tmp_path / "marker"
    custom = job / "site" / "custom"
    custom.mkdir()
    (custom / "ours.py").write_text(CODE.format(marker=str(marker)))
    path = job / "site" / "config" / "config_fed_client.json"
    tree = json.loads(path.read_text("utf-8"))
    tree["executors"][0]["executor"]["path"] = "ours.PilotExecutor"
    path.write_text(json.dumps(tree))
    engine = Engine(private_directory(tmp_path / "request"))
    kit = stage.home(LEAD).kit
    try:
        job_id = engine.call("job", "submit", "-j", job, "--startup-kit", kit)["job_id"]
    except EngineError:
        # The server may well refuse it by itself.
        assert not marker.exists()
        return

    def ended():
        status = str(
            engine.call("job", "meta", job_id, "--startup-kit", kit).get("status")
        )
        return status.startswith("FINISHED")

    until(ended, 120)
    assert not marker.exists()
