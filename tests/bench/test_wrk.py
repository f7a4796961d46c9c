"""Requests for wrk, what it prints, and the processor time of servers."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from bench import wrk
from bench.wrk import NUMBER, SCRIPT, Measured, Target
from tests.support.waiting import until

OUTPUT = """\
Running 2s test @ http://127.0.0.1:8000
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     9.21ms    3.05ms  44.11ms   84.65%
    Req/Sec     3.50k   411.07     4.12k    75.00%
  Latency Distribution
     50%    8.68ms
     75%   10.00ms
     90%   12.44ms
     99%    1.21s
  1000 requests in 2.00s, 1.35MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 100
Requests/sec:    500.00
Transfer/sec:    689.12KB
"""


def test_only_successful_answers_count_for_the_rate() -> None:
    assert wrk.parse(OUTPUT, {"worker": 0.5}) == Measured(450.0, 8.68, 1210.0, 103, {"worker": 500.0})


def test_an_output_without_a_rate_is_refused() -> None:
    with pytest.raises(click.ClickException, match="cannot be read"):
        wrk.parse("nothing", {})


def test_a_request_has_its_length_and_headers() -> None:
    target = Target("POST", "http://127.0.0.1:8000/api/keys?a=1", [{"Authorization": "Bearer x"}], [{"name": "ü"}])
    head, _, body = target.requests().removesuffix(b"\0").partition(b"\r\n\r\n")
    assert head.splitlines() == [
        b"POST /api/keys?a=1 HTTP/1.1",
        b"Host: 127.0.0.1:8000",
        b"Authorization: Bearer x",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    assert body == b'{"name": "\\u00fc"}'


def test_headers_and_bodies_are_sent_in_turn() -> None:
    target = Target("GET", "http://127.0.0.1/", [{"A": "1"}, {"A": "2"}, {"A": "3"}])
    requests = target.requests().removesuffix(b"\0").split(b"\0")
    assert [one.splitlines()[2] for one in requests] == [b"A: 1", b"A: 2", b"A: 3"]


def test_python_and_lua_agree_on_the_place_of_the_number() -> None:
    assert f'local NUMBER = "{NUMBER}"' in SCRIPT.read_text()


def test_a_missing_wrk_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(click.ClickException, match="apt-get install wrk"):
        wrk.require()


BUSY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))']); input()"


def test_the_processor_time_includes_children_that_have_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) as process:
        until(lambda: wrk.cpu_seconds(process.pid) > 0.05, "processor time")
        assert wrk.cpu_seconds(os.getpid()) > wrk.cpu_seconds(process.pid)
        process.communicate(b"\n")
