"""Pacemaker with Corosync on the laboratory's hosts: the same address and program, by a peer; with fencing or without."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

from tests.bench.products import Product
from tests.cluster.lab import ETC, HERE, LINKS, NUMBERS, Lab, wait_for
from tests.cluster.pair import NODES, PYTHON
from tests.cluster.watch import PORT

COROSYNC = """totem {
  version: 2
  cluster_name: bench
  transport: knet
  crypto_cipher: none
  crypto_hash: none
  token: 1000
}
nodelist {
%s}
quorum {
  provider: corosync_votequorum
  two_node: 1
}
logging {
  to_stderr: yes
  to_syslog: no
  timestamp: hires
}
"""
RESOURCES = """<cib validate-with="pacemaker-3.7" epoch="2" num_updates="0" admin_epoch="1">
<configuration>
 <crm_config><cluster_property_set id="o">
  <nvpair id="o1" name="stonith-enabled" value="{fencing}"/>
  <nvpair id="o2" name="stonith-action" value="off"/>
  <nvpair id="o3" name="dc-deadtime" value="2s"/>
 </cluster_property_set></crm_config>
 <nodes/>
 <resources>
  <group id="web"><meta_attributes id="wm"><nvpair id="wm1" name="resource-stickiness" value="100"/></meta_attributes>
   <primitive id="address" class="ocf" provider="heartbeat" type="IPaddr2">
    <instance_attributes id="ai"><nvpair id="ai1" name="ip" value="{ip}"/><nvpair id="ai2" name="cidr_netmask" value="24"/>
     <nvpair id="ai3" name="nic" value="lan"/></instance_attributes>
    <operations><op id="am" name="monitor" interval="1s" timeout="10s"/></operations></primitive>
   <primitive id="echo" class="ocf" provider="heartbeat" type="anything">
    <instance_attributes id="ei"><nvpair id="ei1" name="binfile" value="{python}"/>
     <nvpair id="ei2" name="cmdline_options" value="{options}"/></instance_attributes>
    <operations><op id="em" name="monitor" interval="1s" timeout="10s"/></operations></primitive>
  </group>{devices}
 </resources>
 <constraints/>
</configuration>
<status/>
</cib>
"""
DEVICE = """
  <primitive id="power-{node}" class="stonith" type="fence_dummy">
   <instance_attributes id="p{node}"><nvpair id="p{node}1" name="pcmk_host_list" value="{node}"/>
    <nvpair id="p{node}2" name="plug" value="{node}"/></instance_attributes></primitive>"""
AGENT = "/usr/sbin/fence_dummy"  # of the fence-agents package: what fence_lab.py is bound over, inside the hosts
FOLDERS = ("/var/lib/pacemaker", "/var/lib/corosync", "/var/log/pacemaker", "/var/log/corosync", "/etc/corosync")
SET_UP = """set -e
for folder in {folders}; do mount -t tmpfs none $folder; done
# The agent that starts the program asks for a login shell: what this machine's root does at a login is no part of it.
for file in /root/.profile /root/.bash_profile /root/.bashrc; do [ ! -e $file ] || mount --bind /dev/null $file; done
mkdir -p /run/crm /run/resource-agents /run/pacemaker /var/lib/pacemaker/cib /var/lib/pacemaker/pengine \\
    /var/lib/pacemaker/cores /var/lib/pacemaker/blackbox
chown -R hacluster:haclient /run/crm /var/lib/pacemaker /var/log/pacemaker
chmod 750 /run/crm /var/lib/pacemaker
cp {etc}/corosync.conf /etc/corosync/
cp {etc}/cib.xml /var/lib/pacemaker/cib/cib.xml
chown hacluster:haclient /var/lib/pacemaker/cib/cib.xml
chmod 600 /var/lib/pacemaker/cib/cib.xml
{over}
corosync -f >>/run/lab/state/corosync.log 2>&1 &
for try in $(seq 100); do corosync-quorumtool -s >/dev/null 2>&1 && break; sleep 0.05; done
PCMK_logfile=/run/lab/state/pacemaker.log pacemakerd -f >>/run/lab/state/pacemakerd.log 2>&1
true
"""
PROGRAMS = ("corosync", "pacemakerd", "crm_standby", "/usr/lib/ocf/resource.d/heartbeat/IPaddr2")
STACK = ("corosync", "pacemakerd", "pacemaker-")


class Switch:
    """The power switch that the fence agents reach: outside of the hosts, as a management board is."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self.lock = lab, threading.Lock()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(lab.etc / "power.sock"))
        self._server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                wire, _ = self._server.accept()
            except OSError:
                return
            with wire:
                try:
                    action, host = wire.makefile().readline().split()
                    with self.lock:
                        # Of two that switch each other off one is first: what the other asked dies with it.
                        wire.setblocking(False)
                        with contextlib.suppress(BlockingIOError):
                            if not wire.recv(1):
                                continue
                        wire.setblocking(True)
                        wire.sendall(self._switch(action, host).encode() + b"\n")
                except (OSError, ValueError):
                    pass  # who asked has lost its own power meanwhile

    def _switch(self, action: str, name: str) -> str:
        host = self._lab[name]
        if action == "status":
            return "on" if host.pid else "off"
        if action in ("off", "reboot") and host.pid:
            host.power_off()
        if action in ("on", "reboot") and not host.pid:
            host.power_on()
        return "done"

    def close(self) -> None:
        self._server.close()


class Pacemaker(Product):
    comms = STACK

    def __init__(self, fencing: bool) -> None:
        self.name = "pacemaker, fenced" if fencing else "pacemaker"
        self.told = "corosync token 1 s, monitor each second" + (", power switch" if fencing else ", no fencing")
        self.patience_s = 8.0 if fencing else 5.0
        super().__init__(Lab(lease_disk=False))
        nodes = ""
        for node in NODES:
            rings = "".join(f"    ring{i}_addr: {v4}{NUMBERS[node]}\n" for i, (v4, _) in enumerate(LINKS.values()))
            nodes += f"  node {{\n    name: {node}\n    nodeid: {NODES.index(node) + 1}\n{rings}  }}\n"
        (self.lab.etc / "corosync.conf").write_text(COROSYNC % nodes)
        options = " ".join((*PYTHON[1:], str(HERE / "echo.py"), self.ip, str(PORT)))
        devices = "".join(DEVICE.format(node=node) for node in NODES) if fencing else ""
        (self.lab.etc / "cib.xml").write_text(
            RESOURCES.format(fencing=str(fencing).lower(), ip=self.ip, python=sys.executable, options=options,
                             devices=devices)
        )  # fmt: skip
        agent = self.lab.etc / "fence_lab.py"
        shutil.copy(Path(__file__).with_name("fence_lab.py"), agent)
        agent.chmod(0o755)
        self._switch = Switch(self.lab)
        over = f"mount --bind {ETC}/fence_lab.py {AGENT}" if fencing else ":"
        self._set_up = SET_UP.format(folders=" ".join(FOLDERS), etc=ETC, over=over)

    @staticmethod
    def missing() -> list[str]:
        return [program for program in PROGRAMS if shutil.which(program) is None and not os.path.exists(program)]

    @staticmethod
    def missing_for_fencing() -> list[str]:
        return Pacemaker.missing() + ([] if os.path.exists(AGENT) else [AGENT])

    def start(self, *nodes: str) -> None:
        for node in nodes or NODES:
            self.keep(node, "sh", "-c", self._set_up, log="setup.log")

    def steady(self) -> None:
        wait_for(lambda: "S_IDLE" in self._asked("crmadmin", "-S", self._controller()), 40, self.name, 0.3)

    def _asked(self, *words: str) -> str:
        return self.lab["a"].run(*words, check=False) if self.lab["a"].pid else ""

    def _controller(self) -> str:
        found = [node for node in NODES if f": {node}" in self._asked("crmadmin", "-D")]
        return found[0] if found else "a"

    def planned(self, source: str, target: str) -> int:
        asked_ns = time.monotonic_ns()
        self.lab[source].run("crm_standby", "-N", source, "-v", "on")
        return asked_ns

    def after_planned(self, source: str) -> None:
        self.lab[source].run("crm_standby", "-N", source, "-D")

    def power_cycle(self) -> None:
        with self._switch.lock:  # an agent of the last fault may still be asking
            super().power_cycle()

    def close(self) -> None:
        self._switch.close()
        super().close()
