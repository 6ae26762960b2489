"""A pfctl for tests: a real program that keeps anchors as files, writes down how it was called, and can misbehave.

It knows the calls that the engine makes, with the words that FreeBSD's pfctl answers:

    pfctl -s info                    pfctl -a ANCHOR -f -           replaces the anchor; nothing removes it
    pfctl -a ftp-proxy -s Anchors    pfctl -a ANCHOR -s labels      one line for each rule with a label
    pfctl -s rules | nat             the anchors that the main ruleset calls, if `mood` has them as `conf`

The file `mood` beside it says how it behaves: `{"busy": 3}` for so many loads, `{"fail": "..."}`, `{"stall": 1}`,
`{"die": 9}`, `{"slow": 0.2}`, `{"wait": 1}` until there is a file `go`, `{"disabled": 1}`, `{"denied": 1}`,
`{"counted": [7, 480, 9, 12000]}`; loads with `{"at": "51234"}` only where that is in the text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from attrs import define

__all__ = ["Call", "StandIn"]

SCRIPT = r"""#!{python} -IS
import json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
arguments = sys.argv[1:]
loads = arguments[2:] == ["-f", "-"]
text = sys.stdin.read() if loads else ""
try:
    mood = json.load(open(here + "/mood"))
except OSError:
    mood = {{}}
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps([arguments, text]) + "\n")

def fail(words):
    sys.stderr.write("No ALTQ support in kernel\nALTQ related functions disabled\n" + words + "\n")
    sys.exit(1)

def path_of(anchor):
    return here + "/anchors/" + anchor.replace("/", ":")

if mood.get("denied"):
    fail("pfctl: /dev/pf: Permission denied")
if arguments == ["-s", "info"]:
    print("Status: " + ("Disabled" if mood.get("disabled") else "Enabled for 0 days 00:01:02"))
elif arguments in (["-s", "rules"], ["-s", "nat"]) and "conf" in mood:
    filters = arguments[1] == "rules"
    print("".join(line + "\n" for line in mood["conf"] if line.startswith("anchor") == filters), end="")
elif arguments == ["-a", "ftp-proxy", "-s", "Anchors"]:
    for name in sorted(os.listdir(here + "/anchors")):
        print("  " + name.replace(":", "/"))
elif loads:
    if mood.get("at", "") in text:
        while text and mood.get("wait") and not os.path.exists(here + "/go"):
            time.sleep(0.002)
        if mood.get("slow"):
            time.sleep(mood["slow"])
        if mood.get("busy"):
            with open(here + "/busy", "a") as tries:
                tries.write("x")
                busy = tries.tell() <= mood["busy"]
            if busy:
                fail("pfctl: DIOCXCOMMIT: Device busy")
        if mood.get("fail"):
            fail(mood["fail"])
        if mood.get("stall"):
            time.sleep(1000)
        if mood.get("die"):
            os.kill(os.getpid(), mood["die"])
    if text:
        with open(path_of(arguments[1]) + ".new", "w") as rules:
            rules.write(text)
        os.rename(path_of(arguments[1]) + ".new", path_of(arguments[1]))
    elif os.path.exists(path_of(arguments[1])):
        os.unlink(path_of(arguments[1]))
elif arguments[2:] == ["-s", "labels"]:
    if not os.path.exists(path_of(arguments[1])):
        fail("pfctl: Anchor does not exist.")
    counted = mood.get("counted", [0, 0, 0, 0])
    for line in open(path_of(arguments[1])):
        if '"' in line:
            packets, octets = counted[0] + counted[2], counted[1] + counted[3]
            print(line.split('label "')[1].split('"')[0], 1, packets, octets, *counted, 1)
            counted = counted[2:] + counted[:2]
else:
    fail("usage: pfctl ...")
"""


@define
class Call:
    arguments: list[str]
    text: str

    @property
    def anchor(self) -> str:
        return self.arguments[1] if self.arguments[:1] == ["-a"] else ""


class StandIn:
    """The program in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "pfctl"
        (folder / "anchors").mkdir(parents=True)
        self.program.write_text(SCRIPT.format(python=sys.executable))
        self.program.chmod(0o755)

    def behave(self, **mood: Any) -> None:
        """From the next call on."""
        (self.folder / "mood.new").write_text(json.dumps(mood))
        (self.folder / "mood.new").rename(self.folder / "mood")

    def go(self, on: bool = True) -> None:
        """Let those go on that wait."""
        if on:
            (self.folder / "go").touch()
        else:
            (self.folder / "go").unlink()

    @property
    def calls(self) -> list[Call]:
        path = self.folder / "calls"
        return [Call(*json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def changes(self) -> list[Call]:
        """Calls that were to change an anchor."""
        return [call for call in self.calls if call.arguments[2:] == ["-f", "-"]]

    @property
    def loads(self) -> list[Call]:
        """Calls that were to load rules, whatever came of them."""
        return [call for call in self.calls if call.text]

    @property
    def anchors(self) -> dict[str, str]:
        """What stands, by the anchor's whole name."""
        found = [path for path in (self.folder / "anchors").iterdir() if path.suffix != ".new"]
        return {path.name.replace(":", "/"): path.read_text() for path in found}

    def leave(self, anchor: str) -> None:
        """Rules of somebody else's."""
        (self.folder / "anchors" / anchor.replace("/", ":")).write_text("pass\n")
