"""A benchmark that fails tells all there is to know: what fails once at a high load cannot be asked again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.__main__ import serving
from bench.measure import Bench
from bench.proxy import running
from bench.tools import BenchError, build
from bench.topology import DIRECT, Topology

pytestmark = [
    pytest.mark.netns,
    pytest.mark.linux("namespaces, and epoll(7), of which the two programs are made"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as root"),
]


def fail(topology: Topology, folder: Path) -> None:
    """A file of another size than it should have."""
    with topology, serving(topology, True), running(topology, ["kernel"], folder) as usage:
        bench = Bench(topology, build("load"), usage, [DIRECT, "kernel"], True, True, 1, lambda line: None)
        bench._run("kernel", ["-n", "1", "-g", "/10", "-w", "11"])


def test_a_failed_run_is_told_with_what_the_kernels_and_the_proxy_know(tmp_path: Path) -> None:
    topology = Topology(nat=True)
    with pytest.raises(BenchError) as told:
        fail(topology, tmp_path)
    text = str(told.value)
    assert "of another size" in text
    assert all(f"--- {space}\n" in text for space in (topology.client, topology.gateway, topology.server))
    assert "TcpActiveOpens" in text
    assert "insert_failed" in text
    assert "\nthe proxy:" in text


def test_a_proxy_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match="another ftpproxy"),
        Topology(nat=True) as topology,
        running(topology, ["kernel"], tmp_path),
        running(topology, ["kernel"], tmp_path),
    ):
        pass
