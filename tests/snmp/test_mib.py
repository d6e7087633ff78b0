"""HASNMP-MIB is well formed, and it and the agent's table of objects say the same: each of both, and nothing more."""

from __future__ import annotations

import enum
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from hasnmp import errors, model
from hasnmp.settings import Snmp
from hasnmp.snmp import access_tables, ha_objects, receivers, standard
from hasnmp.snmp.ha_objects import KIND_NUMBERS, OBJECTS
from hasnmp.snmp.notices import NOTICE_OBJECTS, NOTICES
from hasnmp.snmp.objects import Syntax
from hasnmp.snmp.oids import ROOT, reroot
from tests.snmp.mibs import MIB, base_mibs, net_snmp_environment
from tests.snmp.views import some_whys

SCALARS = (*ha_objects.SCALARS, *receivers.scalars(receivers.Board()))
TABLES = (*ha_objects.TABLES, *receivers.tables(receivers.Board()), some_whys().table())
ACCESS = {"readonly": "read-only", "readwrite": "read-write", "noaccess": "not-accessible"}

# What the types are on the wire; every one that the MIB may use for an object.
BASE = {
    "Enumeration": Syntax.INTEGER32, "Integer32": Syntax.INTEGER32, "OctetString": Syntax.OCTETS,
    "Unsigned32": Syntax.UNSIGNED32, "Gauge32": Syntax.UNSIGNED32, "Counter32": Syntax.COUNTER32,
    "SnmpAdminString": Syntax.OCTETS, "DateAndTime": Syntax.OCTETS, "InetAddress": Syntax.OCTETS,
    "InetAddressType": Syntax.INTEGER32, "TruthValue": Syntax.INTEGER32, "TestAndIncr": Syntax.INTEGER32,
    "TimeStamp": Syntax.TIMETICKS,
}  # fmt: skip

ENUMS: dict[str, type[enum.IntEnum]] = {
    "HaRoleType": model.Role, "HaConditionType": model.Condition, "HaNodeStateType": model.NodeState,
    "HaLinkStateType": model.LinkState, "HaGroupStateType": model.GroupState, "HaServiceStateType": model.ServiceState,
    "HaAdminStateType": model.AdminState, "HaProofType": model.Proof, "HaFailbackType": model.Failback,
    "HaArbiterStateType": model.ArbiterState, "HaPartStateType": model.PartState, "HaSeverityType": model.Severity,
    "HaReceiverStateType": model.ReceiverState, "HaCommandStateType": model.CommandState, "HaReasonType": model.Reason, "HaResultType": errors.Code,
}  # fmt: skip


def camel(name: str) -> str:
    first, *rest = name.lower().split("_")
    return first + "".join(word.capitalize() for word in rest)


def dotted(oid: tuple[int, ...]) -> str:
    return ".".join(map(str, oid))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_mibs(tmp_path_factory.mktemp("base"))


def smi(base: Path, *command: str) -> str:
    """What a command of smitools says, all of it."""
    environment = {**os.environ, "SMIPATH": str(base)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def mib(base: Path) -> ElementTree.Element:
    return ElementTree.fromstring(smi(base, "smidump", "-f", "xml", str(MIB)))


def enumeration(element: ElementTree.Element) -> dict[str, int]:
    return {n.attrib["name"]: int(n.attrib["number"]) for n in element.findall("namednumber")}


def syntax_of(node: ElementTree.Element) -> Syntax:
    """The type on the wire of an object, through the module's own textual conventions."""
    for element in node.find("syntax") or ():
        parent = element.find("parent")
        name = parent.attrib["name"] if parent is not None else element.attrib.get("name") or element.attrib["basetype"]
        return Syntax.INTEGER32 if name.startswith("Ha") else BASE[name]
    raise AssertionError(f"{node.attrib['name']} has no syntax")


def of_file(mib: ElementTree.Element) -> dict[str, tuple[str, Syntax, str]]:
    """Every object of the MIB file: name -> (OID, type on the wire, access)."""
    return {
        node.attrib["name"]: (node.attrib["oid"], syntax_of(node), ACCESS[node.findtext("access", "")])
        for kind in ("scalar", "column")
        for node in mib.iter(kind)
    }


def of_code() -> dict[str, tuple[str, Syntax, str]]:
    """Every object of the agent's table, in the same shape."""
    found = {s.name: (dotted(s.oid), s.syntax, s.access) for s in SCALARS}
    for table in TABLES:
        found |= {c.name: (dotted((*table.entry_oid, c.number)), c.syntax, c.access) for c in table.columns}
        own = [i for i in table.index if i.number]  # 0: another table's
        found |= {i.name: (dotted((*table.entry_oid, i.number)), i.syntax, "not-accessible") for i in own}
    return found


def test_smilint_finds_nothing(base: Path) -> None:
    assert smi(base, "smilint", "-s", "-m", "-l", "6", str(MIB)) == ""


def test_smilint_would_find_something(base: Path, tmp_path: Path) -> None:
    """The gate can fail: an object without a group is found."""
    broken = tmp_path / "HASNMP-MIB.txt"
    broken.write_text(
        MIB.read_text().replace("        haClusterName, haNodeName, haVersion,", "        haNodeName, haVersion,")
    )
    assert "haClusterName" in smi(base, "smilint", "-s", "-m", "-l", "6", str(broken))


def test_net_snmp_reads_it(tmp_path: Path) -> None:
    """Without a word of complaint, and with the same OID for every name."""
    done = subprocess.run(
        ["snmptranslate", "-Pw", "-Tz"], env=net_snmp_environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert not [line for line in done.stderr.splitlines() if MIB.name in line or "Cannot find" in line]
    names = dict(re.findall(r'^"(\w+)"\s+"([\d.]+)"', done.stdout, re.M))
    assert {name: names.get(name) for name in of_code()} == {name: oid for name, (oid, _, _) in of_code().items()}


@pytest.mark.parametrize(
    "name, oid",
    [
        ('haGroupAction."web"', dotted((*ROOT, 1, 5, 1, 13, 3, *b"web"))),
        ('haLinkState."node-b"."lan"', dotted((*ROOT, 1, 4, 1, 5, 6, *b"node-b", 3, *b"lan"))),
    ],
)
def test_net_snmp_takes_and_prints_names_as_instances(name: str, oid: str, tmp_path: Path) -> None:
    environment = net_snmp_environment(tmp_path)
    done = subprocess.run(["snmptranslate", "-IR", "-On", name], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "." + oid
    done = subprocess.run(["snmptranslate", "-Os", oid], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == name


def test_pysmi_compiles_it(base: Path) -> None:
    from pysmi.codegen import JsonCodeGen  # type: ignore[import-untyped]
    from pysmi.compiler import MibCompiler  # type: ignore[import-untyped]
    from pysmi.parser import SmiV2Parser  # type: ignore[import-untyped]
    from pysmi.reader import FileReader  # type: ignore[import-untyped]
    from pysmi.writer import CallbackWriter  # type: ignore[import-untyped]

    written: dict[str, str] = {}
    compiler = MibCompiler(
        SmiV2Parser(), JsonCodeGen(), CallbackWriter(lambda name, data, _: written.update({name: data}))
    )
    compiler.add_sources(FileReader(str(MIB.parent)), FileReader(str(base)))
    results = compiler.compile("HASNMP-MIB", noDeps=False)
    assert str(results["HASNMP-MIB"]) == "compiled", results["HASNMP-MIB"]
    assert f'"{dotted(ROOT)}.1.1.4"' in written["HASNMP-MIB"]


def test_file_and_code_have_the_same_objects(mib: ElementTree.Element) -> None:
    in_file, in_code = of_file(mib), of_code()
    assert sorted(in_file) == sorted(in_code)
    assert in_file == in_code


def test_file_and_code_have_the_same_tables(mib: ElementTree.Element) -> None:
    in_file = {
        table.attrib["name"]: (
            table.attrib["oid"],
            [index.attrib["name"] for index in table.findall("row/linkage/index")],
            [column.attrib["name"] for column in table.findall("row/column")],
        )
        for table in mib.iter("table")
    }
    in_code = {
        t.name: (
            dotted(t.entry_oid[:-1]),
            [i.name for i in t.index],
            [i.name for i in t.index if i.number] + [c.name for c in t.columns],
        )
        for t in TABLES
    }
    assert in_file == in_code
    assert not re.search(r"INDEX \{[^}]*IMPLIED", MIB.read_text())  # text_index() would encode it otherwise


@pytest.mark.parametrize("convention", ENUMS)
def test_enumerations_are_the_vocabulary(convention: str, mib: ElementTree.Element) -> None:
    typedef = next(t for t in mib.iter("typedef") if t.attrib.get("name") == convention)
    assert enumeration(typedef) == {camel(member.name): member.value for member in ENUMS[convention]}


def test_every_enumeration_is_held(mib: ElementTree.Element) -> None:
    named = {t.attrib["name"] for t in mib.iter("typedef") if "name" in t.attrib}
    assert named == {*ENUMS, "HaVerbType", "HaKindType"}


def test_verbs_and_kinds_are_the_vocabulary(mib: ElementTree.Element) -> None:
    types = {t.attrib["name"]: enumeration(t) for t in mib.iter("typedef") if "name" in t.attrib}
    verbs = {camel(verb.name): verb.value for verb in model.Verb}
    assert types["HaVerbType"] == {"noAction": 1} | verbs
    assert types["HaKindType"] == {kind.value: number for kind, number in KIND_NUMBERS.items()}
    assert set(KIND_NUMBERS) == set(model.Kind)


def test_actions_are_verbs(mib: ElementTree.Element) -> None:
    """haAction and haGroupAction have the verbs' numbers; the others count their own from 2."""
    actions = {
        node.attrib["name"]: enumeration(typedef)
        for kind in ("scalar", "column")
        for node in mib.iter(kind)
        if (typedef := node.find("syntax/typedef")) is not None and typedef.attrib["basetype"] == "Enumeration"
    }
    verbs = {"noAction": 1} | {camel(verb.name): verb.value for verb in model.Verb}
    assert set(actions) == {
        "haAction", "haGroupAction", "haServiceAction", "haServiceReport", "haNodeFenceAction", "haConfigAction",
    }  # fmt: skip
    assert actions["haAction"].items() <= verbs.items()
    assert actions["haGroupAction"].items() <= verbs.items()
    service = {name.lower(): number for name, number in actions["haServiceAction"].items() if name != "noAction"}
    offset = model.Verb.SERVICE_START - 2
    assert {f"service_{name}".upper(): number + offset for name, number in service.items()} == {
        verb.name: verb.value for verb in model.Verb if verb.name.startswith("SERVICE_")
    }


def test_written_values_are_the_files(mib: ElementTree.Element) -> None:
    """What the code lets be written is what the file's types allow."""
    nodes = {node.attrib["name"]: node for kind in ("scalar", "column") for node in mib.iter(kind)}
    writable = [o for o in OBJECTS.values() if o.write]
    assert len(writable) == 16
    for target in writable:
        typedef = nodes[target.name].find("syntax/typedef")
        named = nodes[target.name].find("syntax/type")
        if typedef is not None and typedef.attrib["basetype"] == "Enumeration":
            assert list(target.allowed) == list(enumeration(typedef).values()), target.name
        elif typedef is not None:
            limits = typedef.find("range")
            assert limits is not None and target.size == int(limits.attrib["max"]), target.name
        else:
            assert named is not None
            expected = {"TruthValue": (1, 2), "TestAndIncr": range(2**31)}
            if named.attrib["name"] == "SnmpAdminString":
                assert target.size == 255, target.name
            else:
                assert target.allowed == expected[named.attrib["name"]], target.name


def test_every_kind_is_a_notification_and_carries_everything(mib: ElementTree.Element) -> None:
    in_file = {
        n.attrib["name"]: (n.attrib["oid"], tuple(o.attrib["name"] for o in n.findall("objects/object")))
        for n in mib.iter("notification")
    }
    assert in_file == {
        f"ha{kind.value[0].upper()}{kind.value[1:]}": (dotted(oid), NOTICE_OBJECTS) for kind, oid in NOTICES.items()
    }


def test_consoles_find_severity_and_arguments() -> None:
    """The --# comments: one of each for every notification, with arguments that exist and a severity that fits."""
    words = {
        model.Severity.CLEARED: "NORMAL", model.Severity.CRITICAL: "CRITICAL", model.Severity.MAJOR: "MAJOR",
        model.Severity.MINOR: "MINOR", model.Severity.WARNING: "WARNING", model.Severity.INFO: "INFORMATIONAL",
    }  # fmt: skip
    text = MIB.read_text()
    for kind in model.Kind:
        name = f"ha{kind.value[0].upper()}{kind.value[1:]}"
        body = re.search(rf"^{name} NOTIFICATION-TYPE(.*?)^    ::=", text, re.M | re.S)
        assert body
        summary = re.search(r'--#SUMMARY "(.*)"', body[1])
        arguments = re.search(r"--#ARGUMENTS \{ ([\d, ]+) \}", body[1])
        assert re.search(r'--#TYPE ".+"', body[1]) and summary and arguments, name
        numbers = [int(n) for n in arguments[1].split(",")]
        assert summary[1].count("%s") == len(numbers) and max(numbers) < len(NOTICE_OBJECTS), name
        # What each %s stands for, by the word before it: who says so, then what it is about, then in what words.
        meant = {"node": "haEventPeer", "of": "haEventPeer", "to": "haEventPeer", "group": "haEventGroup",
                 "service": "haEventService", "link": "haEventLink"}  # fmt: skip
        about = [meant[word] for word in re.findall(r"(\w+) %s", summary[1])]
        assert [NOTICE_OBJECTS[n] for n in numbers] == ["haEventNode", *about, "haEventText"], name
        if kind in model.ALARMS:
            severity = model.ALARMS[kind][0]
        else:
            severity = (
                model.Severity.CLEARED if kind in model.CLEARS else model.SEVERITIES.get(kind, model.Severity.INFO)
            )
        assert f"--#SEVERITY {words[severity]}\n" in body[1], name


def test_everything_is_in_a_group_and_read_only_is_offered(mib: ElementTree.Element) -> None:
    grouped = {member.attrib["name"] for member in mib.findall("groups/group/members/member")}
    assert grouped == {n for n, (_, _, a) in of_code().items() if a != "not-accessible"} | {
        n.attrib["name"] for n in mib.iter("notification")
    }
    groups = {group.attrib["name"] for group in mib.findall("groups/group")}
    compliances = mib.findall("compliances/compliance")
    assert [c.attrib["name"] for c in compliances] == ["haFullCompliance", "haReadOnlyCompliance"]
    for compliance in compliances:
        required = {member.attrib["name"] for member in compliance.findall("requires/mandatory")}
        assert required == groups, compliance.attrib["name"]
    refined = {
        refinement.attrib["name"]
        for compliance in compliances
        if compliance.attrib["name"] == "haReadOnlyCompliance"
        for refinement in compliance.iter("refinement")
        if refinement.findtext("access") == "readonly"
    }
    assert refined == {n for n, (_, _, a) in of_code().items() if a == "read-write"}


def test_what_rfc_4181_asks_of_descriptions(mib: ElementTree.Element) -> None:
    module = mib.findtext("module/description", "")
    nodes = {
        node.attrib["name"]: node.findtext("description", "") for k in ("scalar", "column") for node in mib.iter(k)
    }
    for name, (_, syntax, access) in of_code().items():
        if syntax is Syntax.COUNTER32:
            assert "haStatDiscontinuityTime" in nodes[name], name
        if access == "read-write":
            assert re.search(r"persist|survives|in memory only", nodes[name]), f"{name}: persistence"
            assert re.search(rf"\b{name}\b", module.partition("Security considerations.")[2]), f"{name}: security"
    revisions = re.findall(r'(LAST-UPDATED|REVISION) "(\d{12}Z)"', MIB.read_text())
    assert revisions[0][1] == max(date for what, date in revisions if what == "REVISION")


def test_rerooted_it_is_still_good(base: Path, tmp_path: Path) -> None:
    for root in ("1.3.6.1.4.1.64512", ".1.3.6.1.4.1.64512.7.1"):
        moved = tmp_path / "HASNMP-MIB.txt"
        moved.write_text(reroot(MIB.read_text(), root))
        assert smi(base, "smilint", "-s", "-m", "-l", "6", str(moved)) == ""
        tree = ElementTree.fromstring(smi(base, "smidump", "-f", "xml", str(moved)))
        old, new = dotted(ROOT), root.removeprefix(".")
        assert {name: oid for name, (oid, _, _) in of_file(tree).items()} == {
            name: new + oid.removeprefix(old) for name, (oid, _, _) in of_code().items()
        }


@pytest.mark.parametrize(
    "root", ["1.3.6.1.4.1", "1.3.6.1.2.1.99", "1.3.6.1.4.1.x", "1.3.6.1.4.1.4294967296", "", "1.3.6.1.4.1.-1"]
)
def test_a_root_that_nobody_may_use_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match=r"below|not an object identifier"):
        reroot(MIB.read_text(), root)


def test_only_our_own_file_is_rerooted() -> None:
    with pytest.raises(ValueError, match="not HASNMP-MIB"):
        reroot("SOME-MIB DEFINITIONS ::= BEGIN END", "1.3.6.1.4.1.64512")


STANDARD = ("SNMPv2-MIB", "SNMP-FRAMEWORK-MIB", "SNMP-MPD-MIB", "SNMP-TARGET-MIB", "SNMP-NOTIFICATION-MIB",
            "SNMP-USER-BASED-SM-MIB", "SNMP-VIEW-BASED-ACM-MIB")  # fmt: skip


def test_capabilities_are_what_the_agent_does(base: Path) -> None:
    """sysORTable names each statement, and each says of every object that its module has writable whether it is so here."""
    file = MIB.with_name("HASNMP-CAPABILITIES-MIB.txt")
    shutil.copy(MIB, base / "HASNMP-MIB")
    assert smi(base, "smilint", "-s", "-m", "-l", "6", str(file)) == ""
    text = file.read_text()
    numbers = re.findall(r"^(\w+) AGENT-CAPABILITIES.*?^    ::= \{ hasnmpCapabilities (\d+) \}", text, re.M | re.S)
    assert [(*ROOT, 3, int(number)) for _, number in numbers] == [oid for oid, _ in standard.CAPABILITIES]
    assert re.findall(r"SUPPORTS (\S+)", text) == ["HASNMP-MIB", *STANDARD]
    config, identity = Snmp(), standard.Identity(b"", 1, lambda: 0, 0, "", "", standard.Counters())
    access = {
        s.name: s.access for s in (*standard.scalars(identity), *access_tables.scalars(), *receivers.target_scalars())
    }
    for table in (
        *standard.TABLES,
        *access_tables.tables(config, b"12345"),
        *receivers.target_tables(receivers.Board()),
    ):
        access |= {c.name: c.access for c in table.columns}
    variations = re.findall(r"VARIATION (\w+)\s+ACCESS (\S+)", text)
    assert len(variations) == len(dict(variations))
    for module in STANDARD:
        found = ElementTree.fromstring(smi(base, "smidump", "-f", "xml", str(base / module)))
        nodes = {node.attrib["name"]: node for kind in ("scalar", "column") for node in found.iter(kind)}
        included = re.search(rf"SUPPORTS {module}\s+INCLUDES \{{(.*?)\}}", text, re.S)
        assert included
        groups = set(re.findall(r"\w+", included[1]))
        members = {member.attrib["name"] for group in found.findall("groups/group") if group.attrib["name"] in groups
                   for member in group.findall("members/member")} & set(nodes)  # fmt: skip
        assert members, module
        for name in members:
            writable = nodes[name].findtext("access") == "readwrite"
            assert dict(variations).get(name, "read-write" if writable else "read-only") == access[name], name
