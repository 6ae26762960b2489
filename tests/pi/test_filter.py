"""The command filter: which commands pass under which policy, and when patience ends."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpproxy.pi.filter import (
    GROUPS,
    KNOWN,
    LONGEST_ARGUMENT,
    UNTRANSLATED,
    CommandFilter,
    Patience,
    Refusal,
    filter_of,
    foreign_command,
    foreign_octets,
    refuses_login,
    verbs_of,
)
from ftpproxy.pi.policy import CommandName, CommandRule, NetworkRule, Policies, Policy
from ftpproxy.pi.verbs import HTTP_VERBS, Kind, kind_of
from ftpproxy.wire.command import parse_command


def rule(text: str, argument: str | None = None) -> CommandRule:
    """`"deny RETR"`."""
    verdict, _, command = text.partition(" ")
    pattern = None if argument is None else re.compile(argument.encode())
    return CommandRule(allow=verdict == "allow", command=CommandName(command), argument=pattern)


def code(line: bytes, policy: Policy | None = None, **changes: Any) -> int:
    """What is answered to `line`; 0: it passes."""
    refusal = CommandFilter(policy or Policy(**changes)).judge(parse_command(line))
    return refusal.code if refusal is not None else 0


ORDINARY = b"USER joe|PASS x|CWD /|LIST|RETR a|STOR a|DELE a|SITE CHMOD 644 a|MDTM a|EPSV|FEAT|XFOO y".split(b"|")


@pytest.mark.parametrize("line", ORDINARY, ids=bytes.decode)
def test_ordinary_commands_pass(line: bytes) -> None:
    assert code(line) == 0


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"SITE EXEC ls",
            b"site exec",
            b"SITE  EXEC ls",
            b"SITE\tEXEC ls",
            b"SITE \xffEXEC ls",
            b"SITE \xff\xf4 EXEC ls",
        ),
        *(b"SITE E\0XEC ls", b"SITE INDEX a", b"SITE CPFR a", b"SITE CPTO b"),
        *(b"SMNT /", b"MIC x", b"CONF x", b"ENC x"),
        *sorted(UNTRANSLATED),
    ],
    ids=repr,
)
def test_what_is_denied_by_default(line: bytes) -> None:
    """Item 140: SITE EXEC is refused, however it is spelt, with the other holes."""
    assert code(line) == 502


def test_site_commands_that_only_look_alike_pass() -> None:
    assert code(b"SITE EXECUTOR") == code(b"SITE HELP EXEC") == code(b"SITE") == 0


def test_untranslated_verbs_are_those_that_the_interpreter_refuses() -> None:
    assert {verb for verb in KNOWN if kind_of(verb) is Kind.REFUSED} == UNTRANSLATED


def test_every_verb_that_means_something_is_known_and_no_http_verb_is() -> None:
    assert not KNOWN & HTTP_VERBS
    assert all(
        kind_of(verb) is Kind.REFUSED or any(verb in group for group in GROUPS.values())
        for verb in KNOWN
        if kind_of(verb) is not Kind.ORDINARY
    )
    groups = [verb for group in GROUPS.values() for verb in group]
    assert len(groups) == len(set(groups))


def test_the_first_rule_decides() -> None:
    policy = Policy(
        commands=(
            rule("allow SITE CHMOD"),
            rule("deny STOR", r"(?i)\.exe$"),
            rule("allow STOR", "^/incoming/"),
            rule("allow SITE EXEC"),
        ),
        deny=(CommandName("SITE"), CommandName("@write")),
    )
    assert code(b"SITE CHMOD 644 a", policy) == 0
    assert code(b"SITE EXEC ls", policy) == 0  # the administrator's word counts more than the default
    assert code(b"SITE UTIME a", policy) == 502
    assert code(b"STOR /incoming/a.EXE", policy) == 550
    assert code(b"STOR /incoming/a.txt", policy) == 0
    assert code(b"STOR a.txt", policy) == 502
    assert code(b"RETR a.exe", policy) == 0


def test_a_list_of_what_is_allowed() -> None:
    policy = Policy(
        commands=(
            rule("deny RETR", "secret"),
            *(rule(f"allow {name}") for name in ("@login", "@navigation", "@transfer", "@read")),
            rule("deny *"),
        )
    )
    assert [code(line, policy) for line in (b"RETR a", b"QUIT", b"PASV", b"MLSD")] == [0, 0, 0, 0]
    assert [code(line, policy) for line in (b"RETR secret", b"STOR a", b"SITE HELP", b"XFOO")] == [550, 502, 502, 502]


def test_an_argument_rule_for_every_verb() -> None:
    policy = Policy(commands=(rule("deny *", r"\.\."),))
    assert code(b"CWD ../etc", policy) == code(b"XFOO ..", policy) == 550
    assert code(b"CWD etc", policy) == code(b"XFOO", policy) == 0


def test_a_pattern_sees_what_stands_behind_the_second_word() -> None:
    policy = Policy(commands=(rule("deny SITE CHMOD", "^[0-7]*[1-7]"),))
    assert code(b"SITE chmod  755 a", policy) == 550
    assert code(b"SITE CHMOD 000 a", policy) == code(b"SITE CHMOD", policy) == code(b"SITE UMASK 755", policy) == 0


def test_a_pattern_sees_the_octets_that_are_meant() -> None:
    """An octet 255 is doubled on the wire (RFC 854); blanks belong to the name (RFC 2640)."""
    assert code(b"RETR a\xff\xffb", commands=(rule("deny RETR", r"^a\Sb$"),)) == 550
    assert code(b"RETR  a", commands=(rule("deny RETR", "^a"),)) == 0


def test_an_argument_is_judged_whole_or_not_at_all() -> None:
    policy = Policy(commands=(rule("deny RETR", "exe$"),))
    assert code(b"RETR " + b"a" * LONGEST_ARGUMENT, policy) == 0
    assert code(b"RETR " + b"a" * (LONGEST_ARGUMENT - 3) + b"exe", policy) == 550
    assert code(b"RETR " + b"a" * LONGEST_ARGUMENT + b"exe", policy) == 550
    assert code(b"STOR " + b"a" * LONGEST_ARGUMENT + b"exe", policy) == 0


@pytest.mark.parametrize(
    "line",
    b"STOR a|STOU|APPE a|DELE a|RMD a|MKD a|XMKD a|RNFR a|RNTO b|MFMT 1 a|MFF x a|SITE CHMOD 644 a|SITE|SITE X|"
    b"MDTM 20260101000000 a".split(b"|"),
    ids=bytes.decode,
)
def test_a_read_only_service_stays_as_it_is(line: bytes) -> None:
    assert code(line, read_only=True) == 550


def test_a_read_only_service_can_be_read() -> None:
    for line in b"USER a|PASS b|CWD a|PWD|TYPE I|PASV|EPRT x|REST 5|RETR a|LIST|MDTM a|SITE HELP|QUIT|ABOR".split(b"|"):
        assert code(line, read_only=True) == 0
    assert code(b"SITE EXEC", read_only=True) == 550
    assert code(b"XFOO", read_only=True) == code(b"LPRT", read_only=True) == 502
    assert code(b"STOR /incoming/a", read_only=True, commands=(rule("allow STOR", "^/incoming/"),)) == 0


@pytest.mark.parametrize("name", [b"anonymous", b"ftp", b"Anonymous", b"FTP ", b" ftp"])
def test_an_anonymous_only_service_lets_nobody_else_try(name: bytes) -> None:
    assert code(b"USER " + name, anonymous_only=True) == 0


@pytest.mark.parametrize("name", [b"joe", b"", b"ftpd", b"joe ftp", b"ftp joe", b"anonymous@host"])
def test_an_anonymous_only_service_names_the_reason(name: bytes) -> None:
    refusal = CommandFilter(Policy(anonymous_only=True)).judge(parse_command(b"USER " + name))
    assert refusal == Refusal(530, "Only anonymous FTP is allowed.", "anonymous_only")


def test_refused_tls_leaves_the_session_usable() -> None:
    """Item 115: AUTH gets 502, and nothing of it is shown in FEAT (item 53)."""
    refusing = CommandFilter(Policy(tls="refuse", commands=(rule("allow *"),)))
    assert refusing.judge(parse_command(b"AUTH TLS")) == Refusal(502, "TLS is not available here.", "tls")
    assert [code(line, tls="refuse") for line in (b"PBSZ 0", b"PROT P", b"CCC", b"USER a")] == [503, 503, 503, 0]
    assert refusing.refused >= {b"AUTH", b"PBSZ", b"PROT", b"CCC"}
    assert b"EPSV" not in refusing.refused
    assert b"AUTH" not in CommandFilter(Policy()).refused


def test_feat_is_told_what_is_refused_as_a_whole() -> None:
    """Item 54's half: a feature that is refused has no place in FEAT."""
    the_filter = CommandFilter(Policy(deny=(CommandName("MLSD"),), commands=(rule("deny SIZE", "x"),)))
    assert the_filter.refused == UNTRANSLATED | {b"MLSD", b"SMNT", b"MIC", b"CONF", b"ENC"}
    everything = CommandFilter(Policy(commands=(rule("deny *"),)))
    assert b"UTF8" not in everything.refused  # labels that are not verbs


names = st.sampled_from(sorted(verb.decode() for verb in KNOWN) + [*GROUPS, "*", "SITE EXEC", "SITE HELP", "XFOO"])
patterns = st.none() | st.sampled_from(["a", "^b", "[0-9]$"]).map(lambda text: re.compile(text.encode()))
rules = st.builds(CommandRule, allow=st.booleans(), command=names.map(CommandName), argument=patterns)
lines = st.one_of(
    st.binary(max_size=20),
    st.tuples(st.sampled_from(sorted(KNOWN)), st.sampled_from([b"", b" a", b" 1", b" EXEC b", b" HELP 7"])).map(
        b"".join
    ),
)


@given(st.lists(rules, max_size=6), lines)
def test_sorting_by_verb_changes_nothing(commands: list[CommandRule], line: bytes) -> None:
    """The first of the administrator's rules that concerns a command decides, looked at one by one."""
    command = parse_command(line)
    words = command.argument.split()
    expected = CommandFilter(Policy()).judge(command)
    for each in commands:
        verbs = verbs_of(each.command)
        second = each.command.partition(" ")[2].encode()
        seen = b" ".join(words[1:]) if second else command.argument
        if verbs is not None and command.verb not in verbs:
            continue
        if second and (not words or words[0].upper() != second):
            continue
        if each.argument is not None and not each.argument.search(seen):
            continue
        judged = code(line, commands=tuple(commands))
        assert judged == (0 if each.allow else 550 if each.argument else 502)
        return
    assert CommandFilter(Policy(commands=tuple(commands))).judge(command) == expected


def test_all_sessions_share_a_filter() -> None:
    assert filter_of(Policy(read_only=True)) is filter_of(Policy(read_only=True))


# -- patience ---------------------------------------------------------------------------------------------------------


def test_logins_that_fail_end_the_session() -> None:
    """Item 139: after `login_attempts` failures, whichever command they answer."""
    answers = [(b"USER", 331), (b"PASS", 530), (b"USER", 530), (b"NOOP", 530), (b"PASS", 230), (b"ACCT", 430)]
    assert [refuses_login(*answer) for answer in answers] == [False, True, True, False, False, True]
    patience = Patience(Policy(login_attempts=3))
    assert [patience.login_failed() for _ in range(3)] == [None, None, "Too many failed logins."]


def test_five_failures_are_the_default() -> None:
    """Item 139."""
    patience = Patience(Policy())
    assert [patience.login_failed() is not None for _ in range(5)] == [False] * 4 + [True]


def test_unknown_verbs_before_login_end_the_session() -> None:
    """Item 136: the tenth; verbs of vendors are known, and after login nobody counts."""
    patience = Patience(Policy())
    for verb in (b"USER", b"XCRC", b"SITE", b"LPRT", b"OPTS"):
        assert patience.command(verb, logged_in=False) is None
    assert patience.command(b"XFOO", logged_in=True) is None
    assert [patience.command(b"X%d" % n, logged_in=False) is not None for n in range(10)] == [False] * 9 + [True]


@pytest.mark.parametrize("verb", sorted(HTTP_VERBS), ids=bytes.decode)
def test_a_browser_is_recognised(verb: bytes) -> None:
    """Item 135: by the verb of its first line."""
    assert foreign_command(parse_command(verb + b" / HTTP/1.1")) == "the client speaks HTTP"
    assert foreign_command(parse_command(verb.lower())) == "the client speaks HTTP"
    assert foreign_command(parse_command(b"X" + verb + b" /")) is None


@given(st.binary(max_size=50), st.integers(0, 50))
def test_a_tls_record_is_recognised_however_it_is_cut(rest: bytes, cut: int) -> None:
    hello = b"\x16\x03\x01" + rest
    assert foreign_octets(hello, Policy(tls="refuse")) == "the client speaks TLS"
    assert foreign_octets(hello, Policy(tls="pass")) is None
    assert (foreign_octets(hello[:cut], Policy(tls="refuse")) is None) == (cut < 2)
    assert foreign_octets(b"USER " + rest, Policy(tls="refuse")) is None


# -- networks ---------------------------------------------------------------------------------------------------------


def test_the_first_network_decides() -> None:
    few, many = Policy(login_attempts=1), Policy(login_attempts=9)
    policies = Policies(
        Policy(),
        (
            NetworkRule((ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")), few),
            NetworkRule((ip_network("10.0.0.0/8"), ip_network("fd00::/8")), many),
        ),
    )
    expected = {"10.1.2.3": few, "fd00:1::9": few, "10.2.0.1": many, "fd00:2::1": many, "192.0.2.1": Policy()}
    assert {address: policies.policy_for(ip_address(address)) for address in expected} == expected
    assert policies.policy_for(ip_address("2001:db8::1")) is policies.default
