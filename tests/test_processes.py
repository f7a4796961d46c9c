"""Children do not outlive their parent; a port in use is reported."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyman import processes
from keyman.errors import ConfigurationError
from keyman.processes import check_port, spawn, stop
from tests.support.cli import end_processes, environment
from tests.support.cli import processes as living
from tests.support.waiting import until


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A directory that every process of a test carries in its environment."""
    yield tmp_path
    end_processes(tmp_path)


def _python(code: str, mark: Path) -> subprocess.Popen[bytes]:
    return spawn([sys.executable, "-c", code], environment(MARK=str(mark)))


def test_a_child_leads_a_session_of_its_own_and_reads_nothing(mark: Path) -> None:
    child = _python("import sys, time; sys.exit(3) if sys.stdin.read() else time.sleep(60)", mark)
    until(lambda: os.getsid(child.pid) == child.pid, "a session")
    assert os.getpgid(child.pid) == child.pid
    stop(child)
    assert child.returncode == -signal.SIGTERM


def test_a_child_has_the_environment_that_it_was_given_and_no_more(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "1")
    child = _python(
        "import os, pathlib; pathlib.Path(os.environ['MARK'], 'seen').write_text(','.join(sorted(os.environ)))", mark
    )
    assert child.wait(30) == 0
    assert "CANARY" not in (mark / "seen").read_text().split(",")


def test_stopping_waits_for_a_child_that_takes_its_time(mark: Path) -> None:
    child = _python(
        "import os, pathlib, signal, sys, time\n"
        "def leave(*_): time.sleep(0.3); pathlib.Path(os.environ['MARK'], 'left').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "pathlib.Path(os.environ['MARK'], 'ready').touch()\n"
        "while True: time.sleep(0.05)",  # a signal that comes in the moment before a long sleep is heard after it
        mark,
    )
    until((mark / "ready").exists)
    stop(child)
    assert child.returncode == 0
    assert (mark / "left").exists()


def test_a_child_that_does_not_listen_is_ended(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT", 0.2)
    child = _python(
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(os.environ['MARK'], 'ready').touch()\n"
        "time.sleep(60)",
        mark,
    )
    until((mark / "ready").exists)
    stop(child)
    assert child.returncode == -signal.SIGKILL


def test_stopping_what_has_ended_is_no_error(mark: Path) -> None:
    child = _python("pass", mark)
    child.wait(30)
    stop(child)
    stop(child)
    assert child.returncode == 0


PARENT = """
import os, pathlib, sys, time
from keyman.processes import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(60)"], {"MARK": os.environ["MARK"]})
pathlib.Path(os.environ["MARK"], "child").write_text(str(child.pid))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_no_child_outlives_its_parent_however_that_ends(mark: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment(MARK=str(mark)))
    until(lambda: (mark / "child").exists() and (mark / "child").read_text(), "a child")
    parent.send_signal(number)
    parent.wait(30)
    until(lambda: not living(mark), "the child's end")


LATE = """
import os, pathlib, signal, sys, time
from keyman.processes import die_with_parent
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    die_with_parent(parent, signal.SIGKILL)
    pathlib.Path(os.environ["MARK"], "lives").touch()
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_that_binds_itself_too_late_ends_at_once(mark: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", LATE], env=environment(MARK=str(mark)))
    assert parent.wait(30) == 0
    until(lambda: not living(mark), "the child's end")
    assert not (mark / "lives").exists()


def test_a_child_is_not_born_deaf_to_signals(mark: Path) -> None:
    """Whatever the parent ignores at that moment: a child that ignores SIGTERM could not be stopped in order."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = _python("import time; time.sleep(60)", mark)
    finally:
        signal.signal(signal.SIGTERM, before)
    time.sleep(0.1)
    stop(child)
    assert child.returncode == -signal.SIGTERM


def test_a_free_port_passes_and_stays_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    check_port("localhost", port)


@pytest.mark.parametrize("taken", ["127.0.0.1", "0.0.0.0"])  # noqa: S104  # bound, and never served
def test_a_port_that_somebody_listens_on_is_refused_in_one_sentence(taken: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((taken, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {port} on 127.0.0.1 is in use.*--port") as raised:
            check_port("127.0.0.1", port)
        assert "\n" not in str(raised.value)


def test_a_host_that_is_not_ours_is_refused_in_one_sentence() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid", "x" * 70, "a..b"):
        with pytest.raises(ConfigurationError, match=f"{host}.*--host") as raised:
            check_port(host, 8000)
        assert "in use" not in str(raised.value)
