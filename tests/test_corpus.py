r"""Every line of the field corpus does to a session what the corpus expects of it.

`corpus.jsonl` has lines as real servers and clients send them.  Those with a "parser" are parsed in
`wire/test_hostport.py`; each of the others has a scenario here: a heading of ids, and dialogues in the language of
`script.py` (`----` begins another one), in which these stand for more:

    @, @2       the line of the corpus, one of its lines; said with `C:` or `S:`, or as it is with `C*` or `S*`
    greeted     the server has greeted and the client needs no login
    passive     moreover a path stands and both of its legs are up
    retrieving  moreover a RETR has had its 150
    lives       NOOP and its answer: nothing else is owed

An expectation that belongs to a role which the proxy does not have (NAT64) is replaced by what holds without that role;
the comment says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ftpproxy.pi.destinations import Target
from ftpproxy.wire.command import parse_command

from . import script as scripts
from .pi import test_dialogues, test_login

FILE = Path(__file__).with_name("corpus.jsonl")
SHARED = Path(__file__).parents[2] / "shared" / FILE.name
CASES = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
LINES = {case["id"]: case["line"] for case in CASES}

GREETED = r"""
policy require_login=false
S: 220 ready
C> 220 ready
"""
PASSIVE = rf"""{GREETED}
C: PASV
S> PASV
S: 227 (192,0,2,1,195,80)
open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0
opened client 198.51.100.7:20001 ready
C> 227 Entering Passive Mode (198,51,100,7,78,33)
connected server
connected client
"""
RETRIEVING = rf"""{PASSIVE}
C: RETR x
start down RETR x
S> RETR x
S: 150 here
C> 150 here
"""
LIVES = r"""
C: NOOP
S> NOOP
S: 200 ok
C> 200 ok
"""
FEATURES = GREETED + "C: FEAT\nS> FEAT\n"
"""A client asks what the server can do."""
WORDS = {"greeted": GREETED, "features": FEATURES, "passive": PASSIVE, "retrieving": RETRIEVING, "lives": LIVES}

SCENARIOS = r"""
== G01 G03 G04 G05 G07 G08 G09 G11 G12
# one line, and the greeting is complete: what waited for it goes
C: NOOP
S: @
C> @
S> NOOP
S: 200 ok
C> 200 ok

== G13
# ONE reply: its first four lines complete nothing
C: NOOP
S: @1
C> @1
S: @2
C> @2
S: @3
C> @3
S: @4
C> @4
S: @5
C> @5
S> NOOP
S: 200 ok
C> 200 ok

== G15
C: NOOP
S: @1
C> @1
S: @2
C> @2
S> NOOP
S: 200 ok
C> 200 ok

== G16
S: @
C> @
S.
hangup drain

== G17
S: @
C> 421 The server does not speak FTP.
hangup drain

== P35
# the last line counts, and one canonical line leaves
greeted
C: PASV
S> PASV
S: @
open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0
opened client 198.51.100.7:20001 ready
C> 227 Entering Passive Mode (198,51,100,7,78,33)
lives

== P37
greeted
C: PASV
S> PASV
S: @
open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0
opened client 198.51.100.7:20001 ready
C> 227 Entering Passive Mode (198,51,100,7,78,33)
lives

== E22
greeted
C: EPSV ALL
S> EPSV ALL
S: @
C> @
lives
----
# as answer to a plain EPSV it opens nothing
greeted
C: EPSV
S> EPSV
S: @
C> @
lives

== E24
# the server cannot EPSV: PASV is tried, and the client need not know
greeted
C: EPSV
S> EPSV
S: @
S> PASV
S: 227 (192,0,2,1,195,80)
open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0
opened client 198.51.100.7:20001 ready
C> 229 Entering Extended Passive Mode (|||20001|)
lives

== E25
# the same for EPRT; the set is not needed, since the family is that of the control connection
greeted
C: EPRT |1|10.77.1.2|51201|
open call 10.77.1.2:51201 from 198.51.100.7:0 / await 203.0.113.1:0 by 198.51.100.7
opened server 203.0.113.1:20005 ready
S> EPRT |1|203.0.113.1|20005|
S: @
S> PORT 203,0,113,1,78,37
S: 200 ok
C> 200 ok
lives

== E26
# nothing else is to be tried on IPv6: the set is the client's to read
route forward6
greeted
C: EPRT |2|fd77:1::2|51201|
open call [fd77:1::2]:51201 from [2001:db8::7]:0 / await [2001:db8::1]:0 by 2001:db8::7
opened server [2001:db8::1]:20005 ready
S> EPRT |2|2001:db8::1|20005|
S: @
drop
C> @
lives

== E28
greeted
C: LPSV
C> 502 Command not implemented.
S: @
C: PASV
S> PASV
S: @
C> 425 The server named no usable data port.
lives

== C29
greeted
C: @
S> EPSV
S: 229 ok (|||50000|)
open await 198.51.100.7:0 by 10.77.1.2 / call 198.51.100.7:50000 from 203.0.113.1:0
opened client 198.51.100.7:20001 ready
C> 229 Entering Extended Passive Mode (|||20001|)
lives
----
route forward6
greeted
C: @
S> EPSV
S: 229 ok (|||50000|)
open await [2001:db8::7]:0 by fd77:1::2 / call [2001:db8::7]:50000 from [2001:db8::1]:0
opened client [2001:db8::7]:20001 ready
C> 229 Entering Extended Passive Mode (|||20001|)
lives

== C30
route forward6
greeted
C: @
S> EPSV 2
S: 229 ok (|||50000|)
open await [2001:db8::7]:0 by fd77:1::2 / call [2001:db8::7]:50000 from [2001:db8::1]:0
opened client [2001:db8::7]:20001 ready
C> 229 Entering Extended Passive Mode (|||20001|)
lives
----
greeted
C: @
C> 522 Network protocol not supported, use (1)
lives

== C32
# there is no NAT64 role, which would refuse it
greeted
C: @
S> EPSV ALL
S: 200 ok
C> 200 ok
C: PORT 10,77,1,2,200,1
C> 503 Not allowed after EPSV ALL.
C: PASV
C> 503 Not allowed after EPSV ALL.
C: EPRT |1|10.77.1.2|51201|
C> 503 Not allowed after EPSV ALL.
C: LPRT 4,4,10,77,1,2,2,200,1
C> 502 Command not implemented.
C: LPSV
C> 502 Command not implemented.
lives
----
# where the server hears something else it does not hear this
terms translate=active
greeted
C: @
C> 200 EPSV ALL command successful.
C: PASV
C> 503 Not allowed after EPSV ALL.
lives

== C33
greeted
C: @
C> 501 EPSV takes a protocol number or ALL.
lives

== C34
greeted
C: @
C> 501 PASV takes no argument.
lives

== C36 C37
greeted
C: @
C> 502 Command not implemented.
lives

== C38
# there is no NAT64 role: the command means nothing to us and is the server's to answer; FEAT does not show it
greeted
C: @
S> @
S: 500 ?
C> 500 ?
C: FEAT
S> FEAT
S* 211-Features:\r\n ALGS\r\n SIZE\r\n211 End\r\n
C> 211-Features:
C>  SIZE
C> 211 End
lives

== C40
# forwarded; behind the login too, where the 503 is the server's
S: 220 ready
C> 220 ready
C: @
S> @
S: 220 ok
C> 220 ok
C: USER joe
S> USER joe
S: 230 in
C> 230 in
C: @
S> @
S: 503 too late
C> 503 too late
lives

== C41
# the 501 is the server's, but of the gateway mode, where the name is ours (below)
greeted
C: @
S> @
S: 501 no port here
C> 501 no port here
lives

== C42 C44
# unchanged, but in the gateway mode (below)
greeted
C: @
S> @
S: 331 password
C> 331 password
lives

== C45
# known by its verb: unknown ones would end the session
policy unknown_verbs=1
S: 220 ready
C> 220 ready
C: @
S> @
S: 200 ok
C> 200 ok
lives

== C46
S: 220 ready
C> 220 ready
C: @
hangup drain

== F02
policy tls=refuse
features
S: @
C> 211-Features:
C>  EPRT
C>  EPSV
C>  MDTM
C>  PASV
C>  REST STREAM
C>  SIZE
C>  TVFS
C>  UTF8
C> 211 End
lives

== F03
features
S: @
C> 211-Extensions supported:
C>  UTF8
C>  EPRT
C>  IDLE
C>  MDTM
C>  SIZE
C>  MFMT
C>  REST STREAM
C>  MLST type*;size*;sizd*;modify*;UNIX.mode*;UNIX.uid*;UNIX.gid*;unique*;
C>  MLSD
C>  PRET
C>  AUTH TLS
C>  PBSZ
C>  PROT
C>  TVFS
C>  PASV
C>  EPSV
C> 211 End.
lives

== F04
features
S: @
C> 211-Extensions supported:
C>  EPRT
C>  UTF8
C> 211 END
lives

== F06
policy tls=refuse
features
S: @
C> 211-Features:
C>  HOST
C> 211 End
lives

== F07
features
S: @
C> 211 No features.
lives
----
terms translate=passive
features
S: @
C> 211-Features:
C>  EPRT
C>  EPSV
C> 211 End
lives

== F08
features
S: @
C> @
lives
----
terms translate=passive
features
S: @
C> 211-Features:
C>  EPRT
C>  EPSV
C> 211 End
lives

== R01 R02
greeted
C: PORT 10,77,1,2,200,1
open call 10.77.1.2:51201 from 198.51.100.7:0 / await 203.0.113.1:0 by 198.51.100.7
opened server 203.0.113.1:20005 ready
S> PORT 203,0,113,1,78,37
S: @
C> @
C: STOR x
start up STOR x
S> STOR x

== R03
greeted
C: PORT 10,77,1,2,200,1
open call 10.77.1.2:51201 from 198.51.100.7:0 / await 203.0.113.1:0 by 198.51.100.7
opened server 203.0.113.1:20005 ready
S> PORT 203,0,113,1,78,37
S: @
drop
C> @
C: LIST
C> 425 Use PORT or PASV first.
lives

== R05
# both lines wait for the last octet of the download
retrieving
S: @
delivered
settle
C> @
lives

== R06
retrieving
C: ABOR
S> \xff\xf4\xff\xf2ABOR
S: @1
settle
C> @1
C: PWD
S: @2
C> @2
S> PWD

== R07
greeted
C: ABOR
S> ABOR
S: @
C> @
lives

== R09
retrieving
C: ABOR
S> \xff\xf4\xff\xf2ABOR
S: @
settle
C> @
lives

== R10
passive
C: LIST
start down LIST
S> LIST
C: PWD
S: @1
C> @1
S: @2
C> @2
S: @3
delivered
settle
C> @3
S> PWD

== R11
passive
C: RETR x
start down RETR x
S> RETR x
S: @
delivered
settle
C> @
lives

== R13
greeted
C: CWD x
S> CWD x
S: @
C> @
lives

== R14
# PWD is not answered any more, and the end of the server is the end
greeted
C* NOOP\r\nPWD\r\n
S> NOOP
S> PWD
S: @
C> @
S.
hangup drain
----
retrieving
S: @
C> @
S.
hangup

== R15
greeted
C: PASV
S> PASV
S: @
C> @
S.
hangup drain

== R17
S: 220 ready
C> 220 ready
C: AUTH TLS
S> AUTH TLS
S: @
C> @1
hangup drain

== R18
greeted
C: PWD
S> PWD
S: @
C> @
lives

== R19
S: 220 ready
C> 220 ready
C: USER joe
S> USER joe
S: 331 password
C> 331 password
C: PASS secret
S> PASS secret
S: @
C> @
C: PASV
C> 530 Please login with USER and PASS.
C: ACCT x
S> ACCT x
S: 230 in
C> 230 in
C: PASV
S> PASV

== R21 R22
# as it is: we keep no directory
greeted
C: PWD
S> PWD
S: @
C> @
lives

== R23
policy login_attempts=2
S: 220 ready
C> 220 ready
C: USER joe
S> USER joe
S: @
C> @
C: USER joe
S> USER joe
S: @
C> @
C> 421 Too many failed logins.
hangup drain

== R25
passive
C: RETR x
start down RETR x
S> RETR x
C: PWD
S: @
S: 425 session not resumed
C> @
C> 425 session not resumed
S> PWD

== R26
# ours where nothing is set up, the server's where it finds its own reasons
greeted
C: LIST
C> 425 Use PORT or PASV first.
lives
----
passive
C: RETR x
start down RETR x
S> RETR x
S: @
C> @
lives

== R27
S: 220 ready
C> 220 ready
C: USER joe
S> USER joe
S: @
C> 331\x20
lives

== T01 T02 T03
retrieving
C* @
S> \xff\xf4\xff\xf2ABOR
S: 426 aborted
settle
C> 426 aborted
S: 226 ok
C> 226 ok
lives

== T05
retrieving
C* @
S> \xff\xf4\xff\xf2STAT
S: 213 half
C> 213 half
S: 226 done
delivered
settle
C> 226 done
lives

== T06
S: 220 ready
C> 220 ready
C* @
S> USER a
S: 331 password
C> \xff\xfc\x01331 password
lives

== T07
S: 220 ready
C> 220 ready
C* @
S> NOOP
S: 200 ok
C> \xff\xfe\x03200 ok
lives

== T09
greeted
C* @
S> CWD a\xff\xffb
S: 250 ok
C> 250 ok
lives

== T10
passive
C* @
start down RETR foo\x0d\x00bar
S> RETR foo\x0d\x00bar
S: 550 no
C> 550 no
C* TYPE A\r\x00\r\n
C> 501 The command line contains CR or NUL.
C* USER a\r\x00b\r\n
C> 501 The command line contains CR or NUL.
lives

== T11
passive
C* @
C> 501 The command line contains CR or NUL.
lives

== T13
S: 220 ready
C> 220 ready
C: USER joe
S> USER joe
S* @
C> 230 logged  in
lives

== T14
S* @
C> 220 hi
lives

== T15
greeted
C* @
C* SV\r\n
S> PASV

== T17
S: 220 ready
C> 220 ready
C* @
S> AUTH TLS
S: 234 go ahead
C> 234 go ahead
hangup drain
----
S: 220 ready
C> 220 ready
C* @
S> AUTH TLS
S: 502 no
C> 502 no
S> USER x
S> PASS y

== T18
S: 220 ready
C> 220 ready
C* @
lives
C* \r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n
lives
C* \r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n
C> 421 Too many empty lines.
hangup drain
"""


def scenarios() -> list[tuple[str, str]]:
    """Each id with its dialogues."""
    found = []
    for section in SCENARIOS.split("\n== ")[1:]:
        heading, _, dialogues = section.partition("\n")
        found += [(id, dialogues) for id in heading.split()]
    return found


def spoken(line: str) -> list[str]:
    """A line of the corpus as the lines it stands for, what was shortened at full length."""
    line = re.sub(r"(.)…\((\d+) bytes\)…", lambda match: match[1] * int(match[2]), line)
    return line.split("⏎")


def expanded(dialogue: str, lines: list[str]) -> str:
    """A dialogue in the plain language."""
    text = []
    for step in dialogue.splitlines():
        word, _, rest = step.partition(" ")
        if step in WORDS:
            text += WORDS[step].splitlines()
        elif match := re.fullmatch(r"@(\d?)", rest):
            said = [lines[int(match[1]) - 1]] if match[1] else lines
            if word.endswith(":"):  # at once, as one segment
                text.append(f"{word[0]}* " + "".join(line + r"\r\n" for line in said))
            else:
                text += [f"{word} {line}" for line in said]
        else:
            text.append(step)
    return "\n".join(text)


@pytest.mark.parametrize(("id", "dialogues"), [pytest.param(*each, id=each[0]) for each in scenarios()])
def test_line(id: str, dialogues: str, tmp_path: Path) -> None:
    """Items 4-6, 8, 11, 12, 14, 19, 22, 26, 29-31, 33-38, 47, 50-53, 55, 56, 60, 61, 68, 78: as the corpus expects."""
    assert "@" in dialogues, "without the line itself"
    for number, dialogue in enumerate(dialogues.split("\n----\n"), 1):
        path = tmp_path / f"{id}-{number}"
        path.write_text(expanded(dialogue, spoken(LINES[id])))
        script = scripts.read(path)
        stage = test_dialogues.Stage(script)
        for line in script.lines:
            try:
                stage.play(line._replace(rest=scripts.text(line)) if line.word == "start" else line)
            except AssertionError as error:
                raise AssertionError(f"{path.name}, {line.word} {line.rest[:80]}: {error}") from error
        assert not stage.actions
        assert not any(stage.said.values()), stage.said


def test_user_at_host_in_the_gateway_mode() -> None:
    """Item 144: C42, split at the last @."""
    stage = test_login.Stage()
    assert stage.says(LINES["C42"]) == ""
    stage.dials(Target("ftp.example.com"))
    stage.server("220 ready\r\n")
    assert test_login.first(stage.over()) == b"USER real-user"


def test_three_part_login_in_the_gateway_mode() -> None:
    """Item 147: C44, the password of the server in PASS and ours in ACCT."""
    stage = test_login.Stage(test_login.CLOSED)
    assert stage.says(LINES["C44"])[:4] == "331 "
    assert stage.says("PASS remote")[:4] == "332 "
    assert stage.says("ACCT firewall") == ""
    assert stage.verifies(b"fireID", b"firewall") == ""
    stage.dials(Target("remotehost"))
    assert stage.server("220 ready\r\n") == ("", "USER remoteID\r\n")
    stage.server("331 password\r\n")
    assert test_login.first(stage.over()) == b"PASS remote"


def test_host_with_a_port_in_the_gateway_mode() -> None:
    """Item 47: C41, and C40 as a host that is none of ours."""
    stage = test_login.Stage(test_login.MAPPED)
    assert stage.says(LINES["C41"]) == "501 HOST takes no port."
    assert stage.says(LINES["C40"]) == "504 That host is not served here."


def test_verbs_have_no_case() -> None:
    """C45."""
    assert parse_command(LINES["C45"].encode())[:2] == (b"TYPE", b"a")


def test_every_line_is_covered_once() -> None:
    """Item 57, and the same for the other groups."""
    covered = [id for id, _ in scenarios()] + [case["id"] for case in CASES if "parser" in case]
    assert sorted(covered) == sorted(case["id"] for case in CASES)
    assert len(LINES) == len(CASES)


@pytest.mark.skipif(not SHARED.exists(), reason="there is only the one corpus here")
def test_the_corpus_is_the_shared_one() -> None:
    assert FILE.read_bytes() == SHARED.read_bytes()
