"""What the rehearsal of a handover (handover.py) leaves for the new code: the configuration as it has read it.

The file may be another one, or half of one, a moment later, and by then there is nobody any more who could go on as before.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle

from hasnmp.settings import Config

VARIABLE = "HASNMP_HANDOVER"  # "SOCKET LOCK FILE": the descriptors that the new code begins with
REHEARSAL = "HASNMP_REHEARSAL"  # "FILE SHAPE": where the rehearsal leaves what it has read, and what that has to be


def shape(config: Config) -> list[str]:
    """What must be the same before and after: a guardian must know whatever the former one started."""
    services = [f"{s.group}/{s.name}/{s.agent}" for s in config.services()]
    return [config.cluster, config.digest, config.state_dir, config.run_dir, *services]


def digest(config: Config) -> str:
    return hashlib.sha256(json.dumps(shape(config)).encode()).hexdigest()


def rehearsed(config: Config) -> str:
    """In the rehearsal: leave what was read for the new code. Gives why it is not to go by that, "" if it is."""
    number, _, wanted = os.environ.get(REHEARSAL, "").partition(" ")
    if not wanted:
        return ""  # an older guardian's: the file is read again
    if wanted != digest(config):
        return "the configuration file has been changed meanwhile"
    with open(int(number), "wb", closefd=False) as file:
        pickle.dump(config, file)
    return ""


def read_before() -> Config | None:
    """What the rehearsal read, if this is new code in a guardian's place. None: it is not, or an older guardian's."""
    words = os.environ.get(VARIABLE, "").split()
    if len(words) < 3:
        return None
    with open(int(words[2]), "rb") as file:
        file.seek(0)
        config = pickle.load(file)  # what this very code has written
    assert isinstance(config, Config)
    return config
