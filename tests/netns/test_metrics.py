"""Metrics of the kernel plane: after a known load they equal what was done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ftpproxy.lab.network import Lab, Topology
from ftpproxy.lab.peers import FtpServer, Transfer, run
from ftpproxy.lab.proxy import Proxy, forward

from ..test_metrics import Samples, of, samples, scraped
from .deployments import until

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespaces")]

SIZE = 400_000
TRANSFERS = [Transfer(verb, 4, up) for verb in ("PASV", "EPSV", "PORT", "EPRT") for up in (False, True)]


def test_the_counters_equal_what_was_done(tmp_path: Path) -> None:
    """Eight transfers in every mode, both ways; the kernel's octets are an estimate, everything else is exact."""
    place = str(tmp_path / "metrics")

    def metrics() -> Samples:
        return {key: value for key, value in samples(scraped(place)).items() if key[0].startswith("ftpproxy_")}

    def counted(name: str, **labels: str) -> Callable[[], bool]:
        return lambda: metrics().get(of(name, **labels)) == len(TRANSFERS)

    with Lab(Topology.CLIENT_NAT) as lab:
        gateway = lab.gateways["client"]
        config = forward(gateway, "redirect", planes=("nft", "relay")) + f'[metrics]\nlisten = "unix:{place}"\n'
        with FtpServer(lab.server, b"content!" * (SIZE // 8)) as server, Proxy(gateway, config) as proxy:
            assert metrics()[of("rules")] == 0
            outcomes = run(lab.client, lab.dialled, server, TRANSFERS)
            assert [outcomes[transfer].error for transfer in TRANSFERS] == [""] * len(TRANSFERS)
            assert proxy.carried(len(TRANSFERS)), proxy.log
            until(counted("sessions_total", service="lan", code="quit"), "the sessions end")
            until(lambda: metrics()[of("rules")] == 0, "the elements are taken back")
            found = metrics()
    nft = {"service": "lan", "plane": "nft"}
    for client in ("passive", "active"):
        for direction in ("down", "up"):
            labels = {**nft, "client": client, "server": client, "direction": direction, "outcome": "complete"}
            assert found.pop(of("transfers_total", **labels)) == 2
    for direction in ("down", "up"):
        assert found.pop(of("transfer_duration_seconds_count", plane="nft", direction=direction)) == 4
        octets = found.pop(of("data_bytes_total", **nft, direction=direction))
        assert 4 * SIZE * 0.99 <= octets <= 4 * SIZE * 1.25, "segments that were sent again count again"
    assert found.pop(of("sessions_total", service="lan", code="quit")) == len(TRANSFERS)
    rest = {key: value for key, value in found.items() if not key[0].endswith(("_bucket", "_sum", "_info"))}
    assert not any(rest.values()), rest
