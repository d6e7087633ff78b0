"""Kinds of values that stand for something outside the file: addresses, paths, secrets, programs."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hasnmp import config_sql
from hasnmp.config_read import BAD, Context, Kind, list_of, quoted, string, text
from hasnmp.config_yaml import Node

MAX_SECRET = 4096  # octets of a secret's file

# --------------------------------------------------------------------------------------------------------- addresses


def _address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def _host_problem(value: str) -> str:
    """Why an IP address can't be one host's ("" if it can)."""
    address = _address(value)
    if address is None:
        name = re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9_.-]*", value)
        return "is a name, and a name look-up could block the engine" if name else "is no IP address"
    if "%" in value or (address.version == 6 and address.is_link_local):
        return "is link-local, and means something only together with an interface"
    if address.is_multicast or address.is_unspecified:
        return "is no single host's address"
    return ""


IP = string("an IPv4 or IPv6 address", _host_problem, lambda value, _: str(ipaddress.ip_address(value)))


def _interface_problem(value: str) -> str:
    host, slash, length = value.partition("/")
    problem = _host_problem(host)
    if problem:
        return problem
    address = ipaddress.ip_address(host)
    if not slash or not re.fullmatch("[0-9]{1,3}", length) or not 1 <= int(length) <= address.max_prefixlen:
        return f"has no prefix length 1..{address.max_prefixlen} after a /"
    network = ipaddress.ip_network(value, strict=False)
    if address.version == 4 and int(length) <= 30 and address in (network.network_address, network.broadcast_address):
        return f"is the network or broadcast address of {network}"
    return ""


INTERFACE = string(
    "an address and its prefix length, as 192.0.2.100/24",
    _interface_problem,
    lambda value, _: str(ipaddress.ip_interface(value)),
)


def _network_problem(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        try:
            return f"has bits set behind its prefix; write {ipaddress.ip_network(value, strict=False)}"
        except ValueError:
            return "is no network"
    return "is a network with an interface" if "%" in value else ""


NETWORK = string(
    "a network, as 192.0.2.0/24 or 2001:db8::/32", _network_problem, lambda value, _: str(ipaddress.ip_network(value))
)


def split_endpoint(value: str) -> tuple[str, str]:
    match = re.fullmatch(r"\[([^\]]*)\]:([0-9]{1,5})|([^:]*):([0-9]{1,5})", value)
    return ((match[1] or match[3] or "", match[2] or match[4])) if match else (value, "")


def _endpoint_problem(unspecified: bool) -> Callable[[str], str]:
    def problem(value: str) -> str:
        host, port = split_endpoint(value)
        if not port:
            return "has no port" if _address(value) else "is no address and port"
        if not 1 <= int(port) <= 65535:
            return f"has port {int(port)}, outside of 1..65535"
        address = _address(host)
        if address is not None and (address.version == 6) != value.startswith("["):
            return "has brackets where none belong, or none around an IPv6 address"
        if unspecified and address is not None and address.is_unspecified:
            return ""
        return _host_problem(host)

    return problem


def _endpoint(value: str, _: Context) -> str:
    host, port = split_endpoint(value)
    address = ipaddress.ip_address(host)
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


LISTEN = string("ADDRESS:PORT or [IPV6]:PORT", _endpoint_problem(True), _endpoint)
RECEIVER = string("ADDRESS:PORT or [IPV6]:PORT", _endpoint_problem(False), _endpoint)


def _url_problem(value: str) -> str:
    if not value.startswith("http://"):
        return "is not http://, the only one in this version"
    if not re.fullmatch(r"[!-~]+", value):
        return "holds a space or a character that must be written as %xx"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        return f"is no URL ({error})"
    if port == 0:
        return "has port 0"
    if "@" in parts.netloc:
        return "holds a user name, and this file holds no secrets"
    return _host_problem(host)


def _checked_problem(value: str) -> str:
    """Of a check's `url`: which kind it must be depends on the check's type, and is judged with that."""
    web = value.startswith(("http:", "https:")) or "://" not in value
    return _url_problem(value) if web else config_sql.url_problem(value)


HTTP_URL = "http://ADDRESS[:PORT]/PATH"
URL = string(f"{HTTP_URL}, or for type sql {config_sql.FORM}", _checked_problem)

# ------------------------------------------------------------------------------------------------- files and programs


def _path_problem(value: str) -> str:
    if not value or len(value.encode()) > 1000 or not value.isprintable():
        return "is no path"
    return "is a folder's path" if value.endswith("/") and value.strip("/") else ""


def _absolute(value: str, context: Context) -> str:
    return os.path.normpath(os.path.join(context.base_dir, value))


PATH = string("a path; a relative one counts from this file's folder", _path_problem, _absolute)
DIRECTORY = string(
    PATH.allowed,
    lambda value: _path_problem(value.rstrip("/") or value),
    _absolute,
)


def _socket_problem(value: str) -> str:
    # The kernel keeps a Unix socket's path in 108 octets, the last of them zero (unix(7)).
    return _path_problem(value) or ("" if len(value.encode()) <= 107 else f"has {len(value.encode())} octets")


SOCKET = string("a path of at most 107 octets", _socket_problem, _absolute)


def _master_problem(value: str) -> str:
    return _endpoint_problem(False)(value[4:]) if value.startswith("tcp:") else _socket_problem(value)


def _master(value: str, context: Context) -> str:
    return f"tcp:{_endpoint(value[4:], context)}" if value.startswith("tcp:") else _absolute(value, context)


_MASTER = string("a socket's path, as /var/agentx/master, or tcp:ADDRESS:PORT", _master_problem, _master)


def _read_master(node: Node, path: str, context: Context) -> Any:
    return "" if node.value is None and not node.broken else _MASTER.read(node, path, context)


MASTER = Kind(_MASTER.allowed, _read_master)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret's file and what is in it, without the newline at its end (b"" when files are not looked at)."""

    path: str
    octets: bytes = field(default=b"", repr=False)


def secret(least: int, most: int, why: str) -> Kind:
    """A file that holds a secret of so many octets."""

    def read(node: Node, path: str, context: Context) -> Any:
        name = PATH.read(node, path, context)
        if name is BAD or not context.strict:
            return BAD if name is BAD else Secret(name)
        try:
            status = os.stat(name)  # before it is opened: to open a device, or a pipe, is to act on it
            if not stat.S_ISREG(status.st_mode):
                return context.fault(node.line, path, f"{name} is no regular file; allowed: {SECRET_FILE}")
            with open(name, "rb") as file:
                octets = file.read(MAX_SECRET + 2)
        except OSError as error:
            return context.fault(
                node.line, path, f"{name} can't be read ({os.strerror(error.errno or 0)}); allowed: {SECRET_FILE}"
            )
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            context.fault(
                node.line, path, f"{name} has mode {mode:04o}, so others can get at it; run: chmod 600 {name}"
            )
        octets = octets[:-1] if octets.endswith(b"\n") else octets
        octets = octets[:-1] if octets.endswith(b"\r") else octets
        if not least <= len(octets) <= most:
            size = str(len(octets)) if len(octets) <= MAX_SECRET else f"more than {MAX_SECRET}"
            return context.fault(node.line, path, f"{name} holds {size} octets; allowed: {least}..{most}{why}")
        return Secret(name, octets)

    return Kind(f"the path of a file with a secret of {least}..{most} octets, mode 0600", read)


SECRET_FILE = "a file that this user can read and nobody else"


def _program_problem(value: str) -> str:
    if not value:
        return "is empty"
    return "is a relative path" if "/" in value and not value.startswith("/") else ""


def _read_command(node: Node, path: str, context: Context) -> Any:
    words = list_of(text(0, 4096), 1, 256).read(node, path, context)
    if words is BAD:
        return BAD
    problem = _program_problem(words[0])
    if not problem and context.strict and "/" not in words[0] and shutil.which(words[0]) is None:
        problem = "is not found on PATH"
    if problem:
        return context.fault(
            node.line, f"{path}[0]", f"{quoted(words[0])} {problem}; allowed: an absolute path, or a program on PATH"
        )
    return words


COMMAND = Kind("a list of words: the program (an absolute path, or found on PATH) and its arguments", _read_command)
