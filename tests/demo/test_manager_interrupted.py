"""Ctrl-C at each point of a question by pysnmp, and nothing of it is told on stderr: neither then nor at the interpreter's end.

In an interpreter of its own, for the garbage collector tells, too, and so does the interpreter's end.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CODE = """
import functools, gc, os, signal, socket, sys, threading, types
from pysnmp.hlapi.v3arch import asyncio as hlapi
from hasnmp.demo.manager import PySnmp

FILES = ("hasnmp/demo/manager.py", "asyncio/")
hlapi.SnmpEngine = functools.cache(hlapi.SnmpEngine)  # making one is all that takes time here
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # an agent that never answers
silent.bind(("127.0.0.1", 0))
stage = types.SimpleNamespace(operator=("0123456789abcdef", "fedcba9876543210"))

def when_asked():
    # In the middle: the question is on its way, and there is nothing left to be done but to wait.
    while silent.recv(65535):
        os.kill(os.getpid(), signal.SIGINT)

def interrupt(*_):
    # As in the demo, the first one counts (story.py): none comes while what it interrupted is ended.
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

def trace(frame, event, _):
    global points
    if not any(file in frame.f_code.co_filename for file in FILES):
        return None
    frame.f_trace_lines, frame.f_trace_opcodes = False, True
    if event == "opcode":
        points += 1
        if points == wanted:
            interrupt()  # before any instruction of this thread there, one after the other
    return trace

signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGALRM, lambda *_: os._exit(9))
signal.alarm(100)  # no hang
threading.Thread(target=when_asked, daemon=True).start()
wanted, points = 0, 0
while points >= wanted:  # until there are no more points
    wanted, points = wanted + 1, 0
    manager = PySnmp(stage)
    armed = True
    sys.settrace(trace)
    try:
        manager.get("127.0.0.1:%d" % silent.getsockname()[1], "haNodeName")
    except KeyboardInterrupt:
        pass
    else:
        sys.exit("an answer from nobody")
    finally:
        sys.settrace(None)
    manager.close()
    for kept in manager._engine.cache.values():  # that one engine remembers a transport, which went with its loop
        if isinstance(kept, dict):
            kept.get("tran", {}).clear()
    del manager, kept
    gc.collect()
print(wanted)
"""


def test_at_each_point_of_a_question() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert int(ran.stdout) > 50
