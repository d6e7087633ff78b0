"""What OCF agents call of Pacemaker, as hasnmp has it: node names, attributes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from hasnmp.agents.ocf_metadata import TOOLS


def call(folder: Path, *words: str) -> tuple[int, str]:
    env = {"PATH": f"{TOOLS}:/usr/bin:/bin", "HASNMP_OCF_NODE": "b", "HASNMP_OCF_NODES": "a b",
           "HASNMP_OCF_ATTRIBUTES": str(folder), "OCF_RESOURCE_INSTANCE": "db"}  # fmt: skip
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    return done.returncode, done.stdout.strip()


def test_each_is_a_program() -> None:
    names = {path.name for path in TOOLS.iterdir() if os.access(path, os.X_OK)}
    assert names == {"crm_node", "crm_attribute", "attrd_updater", "crm_master", "crm_resource", "ha_logger"}


def test_nodes_are_named_as_the_cluster_names_them(tmp_path: Path) -> None:
    assert call(tmp_path, "crm_node", "-n") == (0, "b")
    assert call(tmp_path, "crm_node", "-l") == (0, "1 a member\n2 b member")
    assert call(tmp_path, "crm_node", "-i") == (0, "2")
    assert call(tmp_path, "crm_node", "-p") == (0, "a b")
    assert call(tmp_path, "crm_node", "--remove") == (64, "")


def test_an_attribute_is_set_asked_for_and_deleted(tmp_path: Path) -> None:
    assert call(tmp_path, "crm_attribute", "-N", "a", "-l", "reboot", "--name", "x/y", "-v", "two words") == (0, "")
    assert call(tmp_path, "crm_attribute", "-N", "a", "-n", "x/y", "-G") == (
        0,
        "scope=status  name=x/y value=two words",
    )
    assert call(tmp_path, "crm_attribute", "--node=a", "--name=x/y", "--query", "--quiet") == (0, "two words")
    assert call(tmp_path, "attrd_updater", "-n", "x/y", "-N", "a", "-Q") == (0, 'name="x/y" host="a" value="two words"')
    assert call(tmp_path, "crm_attribute", "--name=x/y", "--query")[0] == 105, "of another node it is another one"
    assert call(tmp_path, "attrd_updater", "-D", "-n", "x/y", "-N", "a", "-d", "5s") == (0, "")
    assert call(tmp_path, "crm_attribute", "-N", "a", "-n", "x/y", "-G", "-q") == (105, "")


def test_what_is_not_there_has_the_default_that_is_asked_for(tmp_path: Path) -> None:
    words = ("crm_attribute", "--type=crm_config", "--name=stonith-enabled", "--query", "--quiet", "--default=true")
    assert call(tmp_path, *words) == (0, "true")


def test_scores_for_a_promotion_are_kept_and_utilization_is_accepted(tmp_path: Path) -> None:
    assert call(tmp_path, "crm_master", "-Q", "-l", "reboot", "-v", "100") == (0, "")
    assert call(tmp_path, "crm_master", "-G", "-Q") == (0, "100")
    assert call(tmp_path, "crm_resource", "-r", "db", "-z", "-p", "cpu", "-v", "2") == (0, "")
    assert call(tmp_path, "crm_resource", "--ban", "-r", "db") == (64, "")
    assert call(tmp_path, "attrd_updater", "-n", "load", "-v") == (64, "")
