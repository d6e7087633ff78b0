"""hasnmp keeps services running when a server fails; a network management station watches and commands it by SNMP."""

__version__ = "0.1.0"
