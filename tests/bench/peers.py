"""keepalived on the laboratory's hosts: the same address service, by a peer."""

from __future__ import annotations

import signal
import time

from tests.cluster.lab import HERE, Lab, wait_for
from tests.cluster.pair import PYTHON
from tests.cluster.watch import PORT

CONFIG = """global_defs {{
  router_id {node}
}}
vrrp_instance bench {{
  state BACKUP
  version 3
  interface lan
  virtual_router_id 51
  priority {priority}
  advert_int {advert_s}
  virtual_ipaddress {{
    {ip}/24
  }}
}}
"""


class Keepalived:
    """Two keepalived with VRRP version 3, the program running on both hosts at all times, as is usual with it."""

    def __init__(self, lab: Lab, ip: str, advert_s: float = 0.1) -> None:
        self.lab, self.ip, self.advert_s = lab, ip, advert_s

    def start(self) -> None:
        for node, priority in (("a", 150), ("b", 100)):
            config = self.lab[node].state / "keepalived.conf"
            config.write_text(CONFIG.format(node=node, priority=priority, advert_s=self.advert_s, ip=self.ip))
            self.lab[node].spawn(*PYTHON, str(HERE / "echo.py"), self.ip, str(PORT))
            self.lab[node].spawn("keepalived", "-n", "-l", "-D", "-P", "-f", str(config), log="keepalived.log")

    def stop(self, node: str) -> int:
        """An orderly stop: it tells the other by a last advertisement. Returns when."""
        pids = [pid for pid, comm in self.lab[node].processes().items() if comm == "keepalived"]
        at_ns = self.lab[node].signal(signal.SIGTERM, pids[:1])
        return at_ns

    def running(self, node: str) -> bool:
        return "keepalived" in self.lab[node].processes().values()

    def restart(self, node: str) -> None:
        wait_for(lambda: not self.running(node), 10, "keepalived has ended", 0.05)
        config = self.lab[node].state / "keepalived.conf"
        self.lab[node].spawn("keepalived", "-n", "-l", "-D", "-P", "-f", str(config), log="keepalived.log")
        time.sleep(10 * self.advert_s)  # it counts as a backup only after it has listened
