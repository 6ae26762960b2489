from __future__ import annotations

import pytest

from ftpproxy.wire.feat import filtered

TLS = {b"AUTH", b"PBSZ", b"PROT", b"CCC"}


def test_refused_features_are_hidden() -> None:
    """Items 50, 53, 54: nothing that is refused is shown, and each line has exactly one leading blank."""
    lines = [b"211-Features:", b" AUTH SSL", b" auth TLS", b" EPRT", b" PBSZ", b" PROT", b" UTF8", b"211 End"]
    assert filtered(lines, TLS) == [b"211-Features:", b" EPRT", b" UTF8", b"211 End"]


def test_an_auth_line_with_parameters() -> None:
    lines = [b"211-Features:", b" AUTH TLS;TLS-C;TLS-P;SSL;", b" HOST", b"211 End"]
    assert filtered(lines, TLS) == [b"211-Features:", b" HOST", b"211 End"]


def test_any_indent() -> None:
    """Item 51."""
    lines = [b"211-Extensions supported:", b"    EPRT", b"UTF8", b"211-SIZE", b"211 END"]
    assert filtered(lines, TLS) == [b"211-Extensions supported:", b" EPRT", b" UTF8", b" SIZE", b"211 END"]


def test_parameters_are_kept() -> None:
    lines = [b"211-x", b" MLST type*;size*;", b" REST STREAM", b"211 End."]
    assert filtered(lines, TLS) == lines


@pytest.mark.parametrize("line", [b"211 no-features", b"211 "])
def test_a_single_line_grows(line: bytes) -> None:
    """Items 52, 54: what we provide is listed."""
    assert filtered([line], TLS, [b"EPSV", b"EPRT"]) == [b"211-Features:", b" EPSV", b" EPRT", b"211 End"]
    assert filtered([line], TLS) == [b"211 No features."]


def test_nothing_is_listed_twice() -> None:
    lines = [b"211-x", b" epsv", b"211 End"]
    assert filtered(lines, TLS, [b"EPSV"]) == lines


def test_nothing_left() -> None:
    assert filtered([b"211-x", b" AUTH TLS", b"211 End"], TLS) == [b"211-x", b"211 End"]
