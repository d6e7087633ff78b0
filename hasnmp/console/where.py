"""Whom a command is for: the daemon of this machine by its socket, or any node by SNMP (`--host`)."""

from __future__ import annotations

import argparse
import ipaddress
import os
from typing import TYPE_CHECKING

from hasnmp.console.control import Control
from hasnmp.errors import Code, ConfigError, Refused

if TYPE_CHECKING:
    from hasnmp.console.remote import Remote
    from hasnmp.settings import Config
    from hasnmp.snmp.manager import Credentials

DEFAULT_SOCKET = "/run/hasnmp/control.sock"
DEFAULT_CONFIG = "/etc/hasnmp/hasnmp.yaml"
SNMP_PORT = 161

Args = argparse.Namespace


def options() -> argparse.ArgumentParser:
    """The options that say where; SUPPRESS lets them stand before the command and after it."""
    where = argparse.ArgumentParser(add_help=False)
    none = argparse.SUPPRESS
    which = where.add_mutually_exclusive_group()
    which.add_argument(
        "--socket",
        metavar="PATH",
        default=none,
        help="the daemon's control socket; default: of --config, else $HASNMP_SOCKET, else " + DEFAULT_SOCKET,
    )
    which.add_argument(
        "--config",
        metavar="FILE",
        default=none,
        help="find the socket by this file, or --host's nodes and users; default for these: " + DEFAULT_CONFIG,
    )
    where.add_argument("--host", metavar="NODE", default=none, help="ask this node, or ADDRESS[:PORT], by SNMP")
    where.add_argument(
        "--user", metavar="NAME", default=none, help="--host: the SNMPv3 user; default: of the configuration"
    )
    where.add_argument("--auth", metavar="ALG", default=none, help="--host: its authentication (sha256)")
    where.add_argument("--auth-file", metavar="FILE", default=none, help="--host: holds its passphrase")
    where.add_argument("--priv", metavar="ALG", default=none, help="--host: its encryption (aes128, with --priv-file)")
    where.add_argument("--priv-file", metavar="FILE", default=none, help="--host: holds the passphrase for that")
    where.add_argument("--community-file", metavar="FILE", default=none, help="--host: SNMPv2c with this community")
    return where


def load(file: str, secrets: bool) -> Config:
    """Raises ConfigError: every fault of the file. secrets: read the files with the secrets too."""
    from hasnmp.config import load as load_config  # takes the YAML library along

    return load_config(file, strict_files=secrets)


def socket_path(args: Args) -> str:
    """--socket, else control.socket of --config, else $HASNMP_SOCKET, else where a daemon listens by default."""
    path: str | None = getattr(args, "socket", None)
    if not path and getattr(args, "config", None):
        path = load(args.config, secrets=False).control.socket
    return path or os.environ.get("HASNMP_SOCKET") or DEFAULT_SOCKET


def connect(args: Args, *tables: str) -> Control | Remote:
    """The engine's end of its socket, or --host's agent."""
    if getattr(args, "host", None):
        return _remote(args, tables)
    return Control(socket_path(args), tables)


def local(args: Args) -> Control:
    """The engine of this machine."""
    return Control(socket_path(args))


def not_remote(args: Args, what: str) -> None:
    """Raises Refused: --host is given, for what can't be asked for over SNMP."""
    if getattr(args, "host", None):
        raise Refused(
            Code.UNSUPPORTED,
            f"{what} can't be asked for over SNMP, for its file names programs that run as root; copy it to a node and "
            f"give the command there, without --host",
        )


def _remote(args: Args, tables: tuple[str, ...]) -> Remote:
    if getattr(args, "socket", None):
        raise Refused(Code.USAGE, "--host and --socket name two places; give one")
    from hasnmp.console.remote import Remote
    from hasnmp.snmp.manager import Manager

    host, port = place(args)
    who = credentials(args)
    return Remote(Manager(host, port, who), who, tables)


def _configuration(args: Args, secrets: bool, needed_for: str) -> Config:
    file = getattr(args, "config", None) or DEFAULT_CONFIG
    try:
        return load(file, secrets)
    except ConfigError as error:
        other = "; or give --user, --auth-file and --priv-file" if secrets else ""
        raise Refused(Code.USAGE, f"--host: {needed_for} is looked up in {file}, which can't be used: "
                                    f"{str(error).splitlines()[0]}{other}") from None  # fmt: skip


def place(args: Args) -> tuple[str, int]:
    """--host as an address and a port. Raises Refused: neither an address nor a node of the configuration."""
    text: str = args.host
    try:
        return str(ipaddress.ip_address(text.strip("[]"))), SNMP_PORT
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and 0 < int(port) < 65536:
        try:
            return str(ipaddress.ip_address(host.strip("[]"))), int(port)
        except ValueError:
            text = host
    else:
        port = ""
    config = _configuration(args, False, f"node {text}")
    node = next((node for node in config.nodes if node.name == text), None)
    if node is None:
        names = ", ".join(node.name for node in config.nodes)
        raise Refused(Code.NOT_FOUND, f"--host {text}: neither an IP address nor a node; there are: {names}")
    own = {str(ipaddress.ip_address(address)): address for address in node.links.values()}
    for listen in config.snmp.listen:
        address, _, number = listen.rpartition(":")
        address = address.strip("[]")
        if address in own:
            return address, int(port or number)
        if ipaddress.ip_address(address).is_unspecified:
            of_kind = [one for one in own if (":" in one) == (":" in address)]
            if of_kind:
                return of_kind[0], int(port or number)
    raise Refused(
        Code.USAGE, f"--host {text}: snmp.listen has none of its addresses ({', '.join(own)}); give --host ADDRESS:PORT"
    )


def _passphrase(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(4097).rstrip(b"\r\n")
    except OSError as error:
        raise Refused(Code.USAGE, f"{file} can't be read: {error.strerror}") from None


def credentials(args: Args) -> Credentials:
    """By the options, else a user of the configuration: --user, or the first that may SET, or the first."""
    from hasnmp.snmp.manager import AUTHENTICATIONS, PRIVACIES, Credentials

    def option(name: str, default: str = "") -> str:
        return str(getattr(args, name, None) or default)

    if option("community_file"):
        return Credentials(community=_passphrase(option("community_file")))
    name = option("user")
    if option("auth_file"):
        auth = option("auth", "sha256")
        priv = option("priv", "aes128" if option("priv_file") else "")
        for given, words, what in ((auth, AUTHENTICATIONS, "--auth"), (priv, ("", *PRIVACIES), "--priv")):
            if given not in words:
                raise Refused(Code.USAGE, f"{what} {given}: none of {', '.join(word for word in words if word)}")
        if not name or (priv and not option("priv_file")):
            raise Refused(Code.USAGE, f"--auth-file needs --user{' and --priv needs --priv-file' if priv else ''}")
        secret = _passphrase(option("priv_file")) if priv else b""
        return Credentials(name, auth, priv, _passphrase(option("auth_file")), secret)
    users = _configuration(args, True, "the user (no --auth-file is given)").snmp.users
    able = [user for user in users if not name or user.name == name]
    able.sort(key=lambda user: user.access == "read")
    if not able:
        known = ", ".join(user.name for user in users) or "none"
        raise Refused(Code.NOT_FOUND, f"no user {name or 'at all'} in the configuration; there are: {known}")
    user = able[0]
    return Credentials(user.name, user.auth, user.priv, user.auth_secret, user.priv_secret)
