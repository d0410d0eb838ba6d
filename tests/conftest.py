"""What holds for every test."""

import gc
import os
import signal
import time
from collections.abc import Generator

import pytest

# As in a terminal: what is started under nohup ignores it, and so would all that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LATE = "no time was left (TESTS_UNTIL)"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes test at once: a thread each. Set before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: nobody looks for garbage among it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """No slow test begins after TESTS_UNTIL (seconds since 1970), so that a slow machine says something in its time."""
    if item.get_closest_marker("slow") and time.time() > float(os.environ.get("TESTS_UNTIL", "inf")):
        pytest.skip(LATE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many did not."""
    late = [report for report in terminalreporter.stats.get("skipped", []) if LATE in str(report.longrepr)]
    if late:
        terminalreporter.write_line(f"{len(late)} slow tests were NOT RUN: {LATE}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one Slurm cannot run in several processes."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone)
