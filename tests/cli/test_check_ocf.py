"""check-config and `hasnmp agents` with OCF agents: what they say of themselves decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hasnmp.agents import systemd_files

TEXT = """\
cluster: bank
nodes:
  a: {links: {lan: 127.0.0.11}}
  b: {links: {lan: 127.0.0.12}}
heartbeat: {key_files: [key]}
arbiter: {type: disk, device: lease.img}
groups:
  web:
    disk: false
    services:
      - {name: db, agent: "AGENT", options: {OPTIONS}}
MORE"""
METADATA = """\
<resource-agent name="db"><shortdesc>A database</shortdesc><longdesc>Runs it, and never in more than eighty columns: so this
is a long text.</longdesc><parameters>
<parameter name="dir" required="1" unique="1"><shortdesc>its folder</shortdesc><content type="string"/></parameter>
<parameter name="port"><content type="integer" default="5432"/></parameter>
<parameter name="fast"><content type="boolean" default="false"/></parameter>
<parameter name="password"><content type="string"/></parameter>
<parameter name="ipport"><deprecated><replaced-with name="port"/></deprecated><content type="integer"/></parameter>
</parameters><actions><action name="start" timeout="120s"/><action name="stop" timeout="90"/>
<action name="monitor" timeout="30" interval="10"/><action name="monitor" depth="20" timeout="60" interval="60"/>ACTIONS
</actions></resource-agent>"""


@pytest.fixture
def check(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OCF_ROOT", str(tmp_path))
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "key").chmod(0o600)

    def call(
        options: str, more: str = "", agent: str = "ocf:test:db", actions: str = "", body: str = ""
    ) -> tuple[int, str]:
        path = tmp_path / "resource.d/test/db"
        path.parent.mkdir(parents=True, exist_ok=True)
        xml = METADATA.replace("ACTIONS", actions)
        path.write_text(
            f"#!/bin/sh\ncase $1 in meta-data) cat <<'E'\n{xml}\nE\n;; validate-all) {body or 'exit 0'} ;; esac\n"
        )
        path.chmod(0o755)
        file = tmp_path / "hasnmp.yaml"
        file.write_text(TEXT.replace("AGENT", agent).replace("OPTIONS", options).replace("MORE", more))
        ran = run("check-config", str(file))
        return ran.status, (ran.out + ran.err).replace(f"{tmp_path}/", "")

    return call


def test_options_that_the_agent_knows_are_good(check: Any) -> None:
    status, text = check("dir: /srv/db, port: 5433, fast: true")
    assert status == 0, text


def test_options_are_judged_by_what_the_agent_says(check: Any) -> None:
    status, text = check("folder: /srv, port: many, fast: perhaps")
    assert status != 0
    assert "options.folder: ocf:test:db has no option folder; it has: dir, port, fast, password" in text
    assert "options.port: 'many' is no whole number" in text
    assert "options.fast: 'perhaps' is no truth value" in text
    assert "options.dir: missing, and ocf:test:db needs it (its folder)" in text


def test_what_may_be_right_is_a_note(check: Any) -> None:
    status, text = check("dir: /srv, ipport: 1", '      - {name: two, agent: "ocf:test:db", options: {dir: /srv}}\n')
    assert status == 0
    assert "calls this option deprecated; write port" in text
    assert "service db has the same" in text


def test_an_agent_that_only_other_nodes_have_is_a_note(check: Any) -> None:
    status, text = check("a: 1", agent="ocf:test:elsewhere")
    assert status == 0 and "resource.d/test/elsewhere" in text and "its options were not looked at" in text


def test_a_promotable_agent_is_refused(check: Any) -> None:
    status, text = check("dir: /srv", actions='<action name="promote" timeout="10"/>')
    assert status != 0 and "one of them promoted" in text


@pytest.mark.skipif("__import__('os').geteuid() != 0")
def test_what_validate_all_says_is_told(check: Any) -> None:
    validates = '<action name="validate-all" timeout="5"/>'
    said = "echo ocf-exit-reason:no such folder >&2; exit"
    status, text = check("dir: /srv", actions=validates, body=f"{said} 6")
    assert status == 0 and "validate-all" in text and "it is not configured well: no such folder" in text
    _, text = check("dir: /srv", actions=validates, body=f"{said} 5")
    assert "validate-all" not in text, "what is not installed, or on the group's disk, is no word on the configuration"
    _, text = check("dir: /srv", actions=validates, body='[ "$OCF_RESKEY_dir" = /srv ] || exit 6')
    assert "validate-all" not in text, "it sees the options"


def test_a_unit_that_a_boot_would_start_is_told(check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd_files, "PLACES", (str(tmp_path / "units"), str(tmp_path / "run")))
    (tmp_path / "units/multi-user.target.wants").mkdir(parents=True)
    status, text = check("", agent="systemd:db")
    assert status == 0 and "db.service has no unit file on this machine" in text
    (tmp_path / "units/db.service").touch()
    assert "db.service" not in check("", agent="systemd:db")[1]
    (tmp_path / "units/multi-user.target.wants/db.service").symlink_to("../db.service")
    assert (
        "a boot would start it here without a lease; run: systemctl disable db.service"
        in check("", agent="systemd:db")[1]
    )
    assert systemd_files.services() == ["db"]


def test_agents_lists_and_shows_them_in_eighty_columns(check: Any, run: Any) -> None:
    check("dir: /srv")
    listed = run("agents")
    assert "ocf:test: db" in listed.out and all(len(line) <= 80 for line in listed.out.splitlines())
    shown = run("agents", "show", "ocf:test:db")
    assert shown.status == 0 and all(len(line) <= 80 for line in shown.out.splitlines())
    words = " ".join(shown.out.split())
    assert "ocf:test:db: A database" in words and "dir REQUIRED its folder" in words and "port 5432" in words
    assert "password_file" in words and "ipport" not in words
    assert "start 120 s" in words and "monitor, check.depth 20 60 s 60 s" in words
    missing = run("agents", "show", "ocf:test:nothing")
    assert missing.status != 0 and "resource.d/test/nothing" in missing.err
    for name in ("db", "DB", "ocf::test:db", "ocf:test:DB"):
        missing = run("agents", "show", name)
        assert missing.status != 0 and "perhaps ocf:test:db is meant" in missing.err.replace('"', ""), missing.err


def test_what_is_nearly_an_agent_is_named(check: Any) -> None:
    check("dir: /srv")
    status, text = check("dir: /srv", agent="ocf:test:DB")
    assert status == 0 and "perhaps ocf:test:db is meant; its options were not looked at" in text.replace('"', ""), text


def test_a_template_of_units_is_a_note(check: Any) -> None:
    status, text = check("", agent="systemd:getty@")
    assert status == 0 and "agent: getty@.service is a template, " in text and "getty@NAME" in text
    assert "is a template" not in check("", agent="systemd:getty@tty1")[1]
