"""Runs the tests that inject faults, and writes what was survived into docs/reliability.md.

``python tests/reliability/report.py`` takes some minutes. Only tests that pass count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
TESTS = (
    "reliability",
    "data/test_hostile.py",
    "data/test_text_files.py",
    "tasks/test_micro_batch.py",
    "tasks/test_disk.py",
    "cli/test_batch_size.py",
    "cli/test_launchers.py",
    "runs/test_lock.py",
)
BEGIN, END = "<!-- made by tests/reliability/report.py: begin -->", "<!-- end -->"


def counts(report: Path) -> tuple[Counter[str], int]:
    """Faults survived with their counts, and the number of tests that failed."""
    found: Counter[str] = Counter()
    failed = 0
    for case in ET.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            continue
        for entry in case.iter("property"):
            if entry.get("name") == "survived":
                count, _, fault = (entry.get("value") or "").partition(" ")
                found[fault] += int(count)
    return found, failed


def table(found: Counter[str]) -> str:
    rows = [f"| {fault} | {count:,} |" for fault, count in sorted(found.items())]
    return "\n".join(["| fault | times survived |", "|---|---:|", *rows])


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [str(ROOT / "tests" / name) for name in TESTS]
        options = ["-n", "0", "-m", "slow or not slow", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        subprocess.run([sys.executable, "-m", "pytest", *tests, *options], cwd=ROOT, check=False)
        found, failed = counts(report)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
    print(f"{sum(found.values()):,} faults of {len(found)} kinds survived; {failed} tests failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
