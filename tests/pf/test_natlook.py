"""DIOCNATLOOK: the octets that each kernel reads and writes, by the offsets of its own headers."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.endpoints import Endpoint
from ftpproxy.pf.natlook import LAYOUTS, DevPf, NatlookError, answer, native_layout, question, refusal, request

INET6 = {"freebsd": 28, "netbsd": 24, "openbsd": 24, "darwin": 30}
"""AF_INET6 (sys/socket.h)."""
PEER, HERE = Endpoint.parse("10.1.0.5:40001"), Endpoint.parse("127.0.0.1:8021")
PEER6, HERE6 = Endpoint.parse("[2001:db8:1::5]:40001"), Endpoint.parse("[2001:db8:1::1]:8021")

# sizes, requests and offsets of sport dport rsport rdport af proto direction
FACTS = {
    "freebsd": (76, 0xC04C4417, (64, 66, 68, 70, 72, 73, 74)),
    "netbsd": (76, 0xC04C4417, (64, 66, 68, 70, 72, 73, 74)),
    "openbsd": (80, 0xC0504417, (68, 70, 72, 74, 76, 77, 78)),
    "darwin": (84, 0xC0544417, (64, 68, 72, 76, 80, 81, 83)),
}
systems = pytest.mark.parametrize("system", FACTS)


@systems
def test_size_and_request(system: str) -> None:
    size, number, _ = FACTS[system]
    assert LAYOUTS[system].size == size
    assert request(LAYOUTS[system]) == number


@systems
@pytest.mark.parametrize("version", [4, 6])
def test_the_question_octet_by_octet(system: str, version: int) -> None:
    size, _, (sport, dport, _, _, af, proto, direction) = FACTS[system]
    expected = bytearray(size)
    if version == 4:
        expected[0:4] = bytes.fromhex("0a010005")
        expected[16:20] = bytes.fromhex("7f000001")
    else:
        expected[0:16] = bytes.fromhex("20010db8000100000000000000000005")
        expected[16:32] = bytes.fromhex("20010db8000100000000000000000001")
    expected[sport : sport + 2] = bytes.fromhex("9c41")  # 40001, the high octet first
    expected[dport : dport + 2] = bytes.fromhex("1f55")  # 8021
    expected[af] = family = 2 if version == 4 else INET6[system]
    expected[proto] = 6
    expected[direction] = 2  # PF_OUT
    peer, here = (PEER, HERE) if version == 4 else (PEER6, HERE6)
    assert question(LAYOUTS[system], peer, here, family) == bytes(expected)


def test_the_question_of_freebsd_as_a_dump() -> None:
    """The same by eye: nothing but the offsets above stands between the two, and they might both be wrong."""
    assert question(LAYOUTS["freebsd"], PEER, HERE, 2).hex(" ", 4) == (
        "0a010005 00000000 00000000 00000000 7f000001 00000000 00000000 00000000"
        " 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
        " 9c411f55 00000000 02060200"
    )


@systems
@pytest.mark.parametrize("called", ["203.0.113.9:21", "[2001:db8:9::9]:2121"])
def test_the_answer(system: str, called: str) -> None:
    expected = Endpoint.parse(called)
    size, _, (*_, rdport, _, _, _) = FACTS[system]
    octets = bytearray(os.urandom(size))  # the rest of it is of no interest
    octets[48 : 48 + len(expected.host.packed)] = expected.host.packed
    octets[rdport : rdport + 2] = expected.port.to_bytes(2, "big")
    assert answer(LAYOUTS[system], bytes(octets), expected.host.version) == expected


endpoints = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 65535))


@given(st.sampled_from(sorted(LAYOUTS)), endpoints, endpoints)
def test_what_is_asked_can_be_read_back(system: str, peer: Endpoint, here: Endpoint) -> None:
    """With source and destination in each other's place, as the kernel answers a connection that it did not rewrite."""
    layout: Struct = LAYOUTS[system]
    size, _, (sport, dport, rsport, rdport, *_) = FACTS[system]
    octets = bytearray(question(layout, peer, here, 0))
    octets[32:64] = octets[0:32]
    octets[rsport : rsport + 2] = octets[sport : sport + 2]
    octets[rdport : rdport + 2] = octets[dport : dport + 2]
    assert len(octets) == size
    assert answer(layout, bytes(octets), here.host.version) == here


def test_the_system_decides() -> None:
    names = ["freebsd15", "freebsd13", "openbsd7", "netbsd10", "darwin"]
    assert [native_layout(name) for name in names] == [
        LAYOUTS["freebsd"], LAYOUTS["freebsd"], LAYOUTS["openbsd"], LAYOUTS["netbsd"], LAYOUTS["darwin"],
    ]  # fmt: skip
    assert native_layout("linux") is None
    assert native_layout("sunos5") is None


# -- the device -------------------------------------------------------------------------------------------------------


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(NatlookError, match="No such file or directory; is pf in this kernel"):
        DevPf(LAYOUTS["freebsd"], str(tmp_path / "pf"))


def test_a_device_that_is_none(tmp_path: Path) -> None:
    """An ordinary file knows no ioctl; it was opened for reading all the same, and is closed again."""
    (tmp_path / "pf").touch()
    device = DevPf(LAYOUTS["freebsd"], str(tmp_path / "pf"))
    with pytest.raises(NatlookError, match="DIOCNATLOOK"):
        device.original_destination(PEER, HERE)
    device.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(device._descriptor)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_without_the_right(tmp_path: Path) -> None:
    (tmp_path / "pf").touch(0o000)
    with pytest.raises(NatlookError, match="can only be opened by root"):
        DevPf(LAYOUTS["freebsd"], str(tmp_path / "pf"))


def test_what_pf_refuses() -> None:
    assert refusal(OSError(errno.E2BIG, "Argument list too long")) == "pf has more than one state of that connection"
    assert refusal(OSError(errno.EPERM, "Nope")) == "pf does not tell (DIOCNATLOOK: Nope)"


@pytest.mark.skipif(not sys.platform.startswith(("freebsd", "openbsd", "netbsd")), reason="needs pf")
def test_the_kernel_knows_no_such_flow() -> None:
    """On a BSD with pf, as root: the request is understood, and a flow that is not there is ENOENT."""
    layout = native_layout(sys.platform)
    assert layout is not None
    try:
        device = DevPf(layout)
    except NatlookError as error:
        pytest.skip(str(error))
    try:
        assert device.original_destination(PEER, HERE) is None
        assert device.original_destination(PEER6, HERE6) is None
    finally:
        device.close()


def test_python_takes_the_request(tmp_path: Path) -> None:
    """ioctl requests above 2**31 are negative for some; a wrong one would be an OverflowError."""
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="ioctl"):
        fcntl.ioctl(file, 0xC04C4417, bytes(76))
