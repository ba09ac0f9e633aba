"""Enrolling the parties of a pilot: keys made at home, public halves signed and pinned.

    lead      init      a root certificate, and an invitation for everybody
    party     request   a home, its keys, and a request with their public halves
    lead      approve   certificates, and the cohort once everybody has asked
    party     install   the engine's kit, and the pinned keys of all

No private key is in any file that is sent. Each step may be repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import Home, HomeRole, make_home, open_home
from fgrpo_secure.pilot.engine import Engine
from fgrpo_secure.pilot.invitation import (
    LEAD,
    Admission,
    Cohort,
    Invitation,
    Request,
    fingerprint,
    is_fingerprint,
    read_pilot,
    read_small,
)
from fgrpo_secure.pilot.kit import furnish
from fgrpo_secure.secrets import private_directory, write_atomically
from privacy.ledger import read_key_file, write_key_file
from privacy.plan import SERVER

INVITATION = "invitation.json"
_PROFILE = "project_profile.yaml"
_CA = "ca"
_SITE_FILE = """\
# What this site adds to every agreement: where its data and rewards lie.
# Paths are read from this folder. Nothing of this file is sent to anybody.

[client]
data = "data.jsonl"           # JSON, JSONL, CSV or Parquet, with a column `prompt`.
reward = "rewards.py:reward"  # The file is yours; the name after the colon is agreed.
# data_set = "main"           # What its data are called in this site's ledgers.
# epsilon_cap = 16.0          # Most that all runs may add up to.
# eval_data = "eval.jsonl"    # Held-out prompts.
# eval_public = false         # Whether scores on them may be published.

# [model]
# base = "model"              # The base model's directory, where it is not downloaded.

[machine]
device = "cpu"
"""


@dataclass(frozen=True, slots=True)
class Pilot:
    """The lead's folder: the root key of the engine's certificates, and who asked.

    Attributes:
        root: the folder, readable by its owner alone.
        invitation: what everybody begins with.
    """

    root: Path
    invitation: Invitation

    @property
    def engine(self) -> Engine:
        """The engine's commands for the lead."""
        return Engine(self.root)

    @property
    def root_fingerprint(self) -> str:
        """Of the root certificate, as the engine writes it."""
        return certificate_fingerprint(self.root / _CA / "rootCA.pem")

    def request_file(self, party: str) -> Path:
        """Where an approved request is kept."""
        return self.root / "approved" / f"{party}.request.json"

    def certificate_file(self, party: str) -> Path:
        """Where the engine's answer to a party is kept."""
        return self.root / "approved" / f"{party}.signed.zip"

    def admission_file(self, party: str) -> Path:
        """Where what goes back to a party is written."""
        return self.root / "admissions" / f"{party}.admission.json"


def init_pilot(source: Path, output: Path) -> Pilot:
    """Make the lead's folder, or bring it up to date with a changed PILOT.toml.

    The root key is made once. Sites may be added later; what is signed stays signed.

    Raises:
        ConfigurationError: the file is wrong.
        StateError: the folder is of another pilot, or of none.
    """
    try:
        text = source.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigurationError(
            f"There is no file {source}.",
            "Write one; docs/pilot.md shows what it says.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{source} is not UTF-8 text.", "Save it as UTF-8, as TOML asks."
        ) from None
    invitation = Invitation.of(read_pilot(text, str(source)))
    known = output / INVITATION
    if known.exists():
        former = open_pilot(output).invitation
        if (former.pilot, former.host) != (invitation.pilot, invitation.host):
            raise StateError(
                f"{output} is the folder of the pilot {former.pilot} at {former.host}.",
                "Choose another --output: certificates hold both names.",
            )
    elif output.exists() and any(output.iterdir()):
        raise StateError(
            f"{output} is not empty and is no pilot's.",
            "Choose a new folder as --output: nothing is written over other files.",
        )
    private_directory(output)
    for folder in ("approved", "admissions"):
        private_directory(output / folder)
    write_atomically(output / _PROFILE, _profile(invitation))
    pilot = Pilot(output, invitation)
    if not (output / _CA / "ca.json").exists():
        # What an interrupted attempt left is no root of anything yet.
        shutil.rmtree(output / _CA, ignore_errors=True)
        pilot.engine.call(
            *("cert", "init", "--profile", output / _PROFILE, "-o", output / _CA)
        )
    private_directory(output / _CA)
    write_atomically(known, invitation.to_bytes())
    return pilot


def open_pilot(root: Path) -> Pilot:
    """Read the lead's folder.

    Raises:
        StateError: it is none.
    """
    path = root / INVITATION
    if not path.is_file():
        raise StateError(
            f"{root} is no folder of a pilot.",
            "Give the folder that `fgrpo pilot init` made.",
        )
    return Pilot(root, Invitation.from_bytes(read_small(path), str(path)))


def request_admission(invitation: Invitation, root: Path, party: str) -> Request:
    """Make a party's home and keys, and the request that goes to the lead.

    Returns:
        The request, which is also in the home, as `PARTY.request.json`.

    Raises:
        ConfigurationError: there is no such party.
        StateError: the folder is another party's home, or something else.
    """
    role = invitation.role(party)
    home = Home(
        root=root.resolve(),
        party=party,
        role=role,
        pilot=invitation.pilot,
        host=invitation.host,
        port=invitation.port,
        admin_port=invitation.admin_port,
    )
    identity = make_home(home)
    if role is HomeRole.SITE and not home.site_file.exists():
        write_atomically(home.site_file, _SITE_FILE.encode(), private=True)
    folder = private_directory(root / "request")
    name = invitation.engine_name(party)
    engine_request = folder / "engine" / f"{name}.request.zip"
    if not engine_request.exists():
        definition = folder / "participant.yaml"
        write_atomically(definition, _participant(invitation, party))
        Engine(folder).call(
            *("cert", "request", "-p", definition, "--out", folder / "engine"),
            "--force",
        )
    found = Request(
        invitation.pilot, party, identity.verify_key, engine_request.read_bytes()
    )
    write_atomically(root / f"{party}.request.json", found.to_bytes())
    return found


def approve_requests(
    pilot: Pilot, files: list[Path], agree: Callable[[Request, str], bool]
) -> Cohort | None:
    """Sign what parties asked for, and write what goes back to them.

    Args:
        pilot: the lead's folder.
        files: requests that came in.
        agree: asked of each that is new, with its fingerprint; whether the lead has
            compared it with its sender.

    Returns:
        The cohort, once every site and the server are approved; until then nothing can
        go back, and None.

    Raises:
        ConfigurationError: a request is none, is of another pilot, or names a party
            that was approved with other keys.
        EngineError: the engine refused it.
    """
    for path in files:
        _approve(pilot, path, agree)
    keys = {}
    for party in (*pilot.invitation.sites, SERVER):
        kept = pilot.request_file(party)
        if not kept.exists():
            return None
        keys[party] = Request.from_bytes(kept.read_bytes(), str(kept)).identity
    cohort = Cohort(pilot.invitation, pilot.root_fingerprint, keys)
    for party in pilot.invitation.parties:
        signed = pilot.certificate_file(party)
        if signed.exists():
            admission = Admission(party, cohort, signed.read_bytes())
            write_atomically(pilot.admission_file(party), admission.to_bytes())
    return cohort


def missing(pilot: Pilot) -> list[str]:
    """Who has not been approved yet."""
    return [
        party
        for party in pilot.invitation.parties
        if not pilot.certificate_file(party).exists()
    ]


def install(path: Path, root: Path, typed: str) -> Cohort:
    """Take what the lead sent back: the engine's kit, and everybody's keys.

    Args:
        path: the admission.
        root: the party's home.
        typed: the cohort's fingerprint as people told it to one another.

    Raises:
        ConfigurationError: the file is another party's or another pilot's, holds
            another key for this party than it has, or has another fingerprint.
        StateError: a key that is pinned here already would change.
        EngineError: the engine refused the certificate.

    Guarantee:
        Nothing is written unless the fingerprint is the cohort's, and the cohort has
        this party's own key.
    """
    home = open_home(root)
    admission = Admission.from_bytes(read_small(path), str(path))
    cohort = admission.cohort
    if not is_fingerprint(typed, cohort.fingerprint):
        raise ConfigurationError(
            f"The cohort in {path} has another fingerprint than the one given.",
            "Do not install it. Ask the lead and another site for theirs, over a way "
            "that does not carry the files.",
        )
    if cohort.invitation.host != home.host:
        raise ConfigurationError(
            f"The cohort's server is {cohort.invitation.host}, and this home was made "
            f"for {home.host}.",
            "Ask the lead which it is; a home is made anew from the right invitation.",
        )
    if admission.party != home.party or cohort.invitation.pilot != home.pilot:
        raise ConfigurationError(
            f"{path} is for {admission.party} of {cohort.invitation.pilot}.",
            f"This home is of {home.party} of {home.pilot}; install its own file.",
        )
    if home.role is not HomeRole.LEAD:
        own = cohort.keys[home.party]
        if own != home.identity().verify_key:
            raise ConfigurationError(
                f"The cohort holds another key for {home.party} than this home has.",
                "Do not install it: somebody else answered in your name. Send the "
                "request again, and compare its fingerprint with the lead.",
            )
    _check_pinned(home, cohort)
    _install_kit(home, admission)
    for name, key in sorted(cohort.keys.items()):
        write_key_file(home.key_file(name), key)
    return cohort


def certificate_fingerprint(path: Path) -> str:
    """SHA-256 of a certificate, as the engine and openssl write it.

    Raises:
        StateError: it is no certificate.
    """
    try:
        found = ssl.PEM_cert_to_DER_cert(path.read_text("ascii"))
    except (ValueError, FileNotFoundError):
        raise StateError(
            f"{path} is no certificate.", "Restore the folder from a backup."
        ) from None
    digest = hashlib.sha256(found).hexdigest().upper()
    return "SHA256:" + ":".join(digest[at : at + 2] for at in range(0, 64, 2))


def _approve(pilot: Pilot, path: Path, agree: Callable[[Request, str], bool]) -> None:
    """Have the engine sign one request, where it is what it says."""
    data = read_small(path)
    request = Request.from_bytes(data, str(path))
    party, invitation = request.party, pilot.invitation
    if request.pilot != invitation.pilot:
        raise ConfigurationError(
            f"{path} is a request to the pilot {request.pilot}.",
            f"This folder is of {invitation.pilot}.",
        )
    role = invitation.role(party)
    kept = pilot.request_file(party)
    if kept.exists():
        if kept.read_bytes() == data:
            return
        raise ConfigurationError(
            f"{party} was approved before, with other keys.",
            f"Ask what happened to its first home. To admit the new keys, remove "
            f"{kept} and its certificate beside it; every party then installs anew.",
        )
    if not agree(request, fingerprint(data)):
        raise ConfigurationError(
            f"The request of {party} is not approved.",
            "Approve it once its sender has told you the same fingerprint.",
        )
    work = private_directory(pilot.root / "work")
    asked, signed = work / "asked.request.zip", work / "signed.zip"
    write_atomically(asked, request.engine, private=True)
    found = pilot.engine.call(
        *("cert", "approve", asked, "-c", pilot.root / _CA),
        *("--profile", pilot.root / _PROFILE, "--out", signed, "--force"),
    )
    wanted = _expected(invitation, party, role)
    if {key: found.get(key) for key in wanted} != wanted:
        raise ConfigurationError(
            f"The request of {party} asks the engine for another name or role.",
            "Do not approve it; ask for one that `fgrpo pilot request` made.",
        )
    write_atomically(pilot.certificate_file(party), signed.read_bytes(), private=True)
    # Last: what is kept is approved, with its certificate on disk.
    write_atomically(kept, data)
    shutil.rmtree(work)


def _expected(
    invitation: Invitation, party: str, role: HomeRole
) -> Mapping[str, str | None]:
    """What the engine says of a request that is what it should be."""
    kind = {HomeRole.SITE: "site", HomeRole.SERVER: "server", HomeRole.LEAD: "user"}
    return {
        "name": invitation.engine_name(party),
        "project": invitation.pilot,
        "kind": kind[role],
        "cert_role": LEAD if role is HomeRole.LEAD else None,
    }


def _check_pinned(home: Home, cohort: Cohort) -> None:
    for path in sorted(home.keys.glob("*.pub")):
        name = path.name.removesuffix(".pub")
        if cohort.keys.get(name) != read_key_file(path):
            raise StateError(
                f"The key of {name} that is pinned here would change or go.",
                f"Ask {name} whether its home was made anew. If so, remove {path} and "
                "install again; runs that pin the former key cannot go on.",
            )


def _install_kit(home: Home, admission: Admission) -> None:
    """Have the engine make its kit, and put it in place once it is whole."""
    root = admission.cohort.root
    if home.kit.exists():
        found = certificate_fingerprint(home.kit / "startup" / "rootCA.pem")
        if found != root:
            raise StateError(
                f"The kit in {home.kit} is under another root certificate.",
                "Remove the folder kit/ once nothing runs here, and install again.",
            )
        furnish(home, home.kit)
        return
    folder = private_directory(home.root / "request")
    signed, work = folder / "own.signed.zip", folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    write_atomically(signed, admission.engine, private=True)
    made = Engine(folder).call(
        *("package", signed, "--request-dir", folder / "engine", "-w", work),
        *("--fingerprint", root),
    )
    kit = Path(str(made["output_dir"]))
    if certificate_fingerprint(kit / "startup" / "rootCA.pem") != root:
        raise ConfigurationError(
            "The engine's certificate is under another root than the cohort names.",
            "Do not use it; ask the lead to approve again.",
        )
    furnish(home, kit)
    # The engine does not sync what it writes, and a kit that is there counts as whole.
    os.sync()
    kit.rename(home.kit)
    shutil.rmtree(work)


def _profile(invitation: Invitation) -> bytes:
    """The engine's own file about the pilot; JSON is YAML too."""
    return _yaml(
        {
            "name": invitation.pilot,
            "scheme": "grpc",
            "connection_security": "mtls",
            "server": {
                "host": invitation.host,
                "fed_learn_port": invitation.port,
                "admin_port": invitation.admin_port,
            },
        }
    )


def _participant(invitation: Invitation, party: str) -> bytes:
    role = invitation.role(party)
    kind = {HomeRole.SITE: "client", HomeRole.SERVER: "server", HomeRole.LEAD: "admin"}
    participant: dict[str, object] = {
        "name": invitation.engine_name(party),
        "type": kind[role],
        # The engine's name of an organisation has no hyphen.
        "org": party.replace("-", "_"),
    }
    if role is HomeRole.LEAD:
        participant["role"] = LEAD
    return _yaml({"name": invitation.pilot, "participants": [participant]})


def _yaml(tree: Mapping[str, object]) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode()
