"""The check `sql`: its URL, and whether what it needs is installed. SQLAlchemy itself is never loaded here: it would stay in the
memory of every process that is forked from the one which read the configuration."""

from __future__ import annotations

import pwd
import re
import sys
from importlib import metadata, util
from urllib.parse import parse_qsl, urlsplit

from hasnmp.config_read import Context, Section
from hasnmp.config_yaml import show

FORM = "DIALECT[+DRIVER]://[USER@][HOST[:PORT]]/DATABASE[?KEY=VALUE]"
_SECRET_KEYS = {"password", "passwd", "pwd", "odbc_connect", "sslpassword"}
# Dialect and driver -> the driver's module and the package that brings it. A dialect alone is SQLAlchemy 2.1's default driver.
DRIVERS = {
    "postgresql": ("psycopg", "psycopg"),
    "postgresql+psycopg": ("psycopg", "psycopg"),
    "postgresql+psycopg2": ("psycopg2", "psycopg2"),
    "postgresql+pg8000": ("pg8000", "pg8000"),
    "mysql": ("MySQLdb", "mysqlclient"),
    "mysql+mysqldb": ("MySQLdb", "mysqlclient"),
    "mysql+pymysql": ("pymysql", "PyMySQL"),
    "mysql+mysqlconnector": ("mysql", "mysql-connector-python"),
    "mariadb": ("MySQLdb", "mysqlclient"),
    "mariadb+pymysql": ("pymysql", "PyMySQL"),
    "mariadb+mariadbconnector": ("mariadb", "mariadb"),
    "oracle": ("oracledb", "oracledb"),
    "oracle+oracledb": ("oracledb", "oracledb"),
    "oracle+cx_oracle": ("cx_Oracle", "cx_Oracle"),
    "mssql": ("pyodbc", "pyodbc"),
    "mssql+pyodbc": ("pyodbc", "pyodbc"),
    "mssql+pymssql": ("pymssql", "pymssql"),
    "sqlite": ("sqlite3", "sqlite3"),
}
PIP = f"{sys.executable} -m pip"  # of the Python that runs the check; another one's would not help
# Dialects that SQLAlchemy does not bring along -> the package that does.
ELSEWHERE = {"sybase": "sqlalchemy-sybase", "informix": "IfxAlchemy", "db2": "ibm-db-sa"}


def url_problem(value: str) -> str:
    """What is wrong with a URL as text; "" if nothing is."""
    if not re.match(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?://", value):
        return f"is no URL of the form {FORM}"
    if not re.fullmatch(r"[!-~]+", value):
        return "holds a space or a character that must be written as %xx"
    try:
        parts = urlsplit(value)
        named, _ = parts.password, parts.port
    except ValueError as error:
        return f"is no URL ({error})"
    if named is not None or any(key.lower() in _SECRET_KEYS for key, _ in parse_qsl(parts.query)):
        return "holds a password, and this file holds no secrets: put it into a file and name that as password_file"
    return ""


def missing(url: str) -> str:
    """What has to be installed on this machine for the URL, and how; "" if nothing has."""
    name = url.partition("://")[0]
    if util.find_spec("sqlalchemy") is None:
        return f"needs SQLAlchemy, which is not installed; run: {PIP} install 'hasnmp[sql]'"
    if name in DRIVERS:
        module, package = DRIVERS[name]
        if util.find_spec(module) is None:
            return f"needs the driver {module}, which is not installed; run: {PIP} install {package}"
        return ""
    dialect = name.partition("+")[0]
    if metadata.entry_points(group="sqlalchemy.dialects", name=name.replace("+", ".")):
        return ""  # brought by a package, which brings or names its driver
    if dialect in ELSEWHERE:
        return f"needs the dialect {name}, which is not installed; run: {PIP} install {ELSEWHERE[dialect]}"
    known = ", ".join(DRIVERS)
    return f"names {show(name)}, which no installed package brings; SQLAlchemy itself has {known}"


def judge(check: Section, context: Context) -> None:
    """A check of type sql: what it needs of this machine."""
    if not context.strict:
        return
    if check.good("url") and check["url"]:
        problem = missing(check["url"])
        if problem:
            context.tell(check, ["url"], f"{show(check['url'])} {problem}")
    if check.good("user") and check["user"]:
        try:
            pwd.getpwnam(check["user"])
        except KeyError:
            context.tell(check, ["user"], f"{show(check['user'])} is no user of this machine")
