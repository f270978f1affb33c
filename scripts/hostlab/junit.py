"""Results as JUnit XML, the form that CI systems read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from .protocol import Report


def document(reports: Iterable[Report]) -> str:
    """One test suite for each host; what is wrong with a host as a whole is an error of a test "host"."""
    root = ET.Element("testsuites")
    for report in reports:
        _suite(root, report)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ET.Element, report: Report) -> None:
    counts = {
        "tests": len(report.results),
        "failures": report.count("fail"),
        "skipped": report.count("skip"),
        "errors": len(report.problems),
    }
    attributes = {name: str(value) for name, value in counts.items()}
    attributes |= {"name": report.host.name, "time": f"{report.seconds:.3f}"}
    suite = ET.SubElement(root, "testsuite", attributes)
    for result in report.results:
        module, _, name = result.test.partition("::")
        place = f"{report.host.name}.{module.removesuffix('.py')}"
        case = ET.SubElement(suite, "testcase", classname=place, name=name, time=f"{result.seconds:.3f}")
        if result.outcome != "pass":
            tag = "failure" if result.outcome == "fail" else "skipped"
            ET.SubElement(case, tag, message=_legal(result.reason.split("\n", 1)[0])).text = _legal(
                result.reason
            )
    for problem in report.problems:
        case = ET.SubElement(suite, "testcase", classname=report.host.name, name="host", time="0")
        error = ET.SubElement(case, "error", message=_legal(problem))
        error.text = _legal("\n".join(report.last_lines))


def _legal(text: str) -> str:
    """``text`` without the control characters that XML has no way to write; a guest may have printed them."""
    return "".join(sign if sign >= " " or sign in "\t\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
