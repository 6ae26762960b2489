"""The Telnet layer of a control connection (RFC 854, RFC 1123 section 4.1.2.12).

An FTP control connection is a Telnet connection, of which two things are left in the field: clients that send
`IAC IP IAC DM` before ABOR and STAT, and a few that try to negotiate.  This filter takes the Telnet out of a
stream before lines are cut:

* `IAC DO x` is answered `IAC WONT x` and `IAC WILL x` `IAC DONT x`, to the sender only; WONT and DONT need no answer;
* subnegotiations and all other commands vanish;
* `IAC IAC` is an octet 255 and stays doubled, as it is to be forwarded;
* `IAC` before an octet that is no Telnet command is data: legacy character sets have a letter there.

The urgent octet of a Synch (the DM) may be missing or alone, since receivers without SO_OOBINLINE lose it; what is
left at the beginning of a line is removed where the verb is read (`command.parse_command`).
"""

from __future__ import annotations

from enum import Enum, auto

from attrs import define, field

__all__ = ["IAC", "SYNCH", "TelnetFilter"]

IAC = 0xFF
_DONT, _DO, _WONT, _WILL, _SB, _SE = 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF0
_ANSWERS = {_DO: _WONT, _WILL: _DONT}
_LONGEST_SUBNEGOTIATION = 1024

SYNCH = b"\xff\xf4\xff\xf2"
"""IAC IP IAC DM, the last octet to be sent urgent: "look at what follows, now" (RFC 959 section 4.1.3)."""


class _State(Enum):
    DATA = auto()
    COMMAND = auto()
    OPTION = auto()
    SUBNEGOTIATION = auto()
    SUBNEGOTIATION_COMMAND = auto()


@define(eq=False)
class TelnetFilter:
    """Feed octets, get data and what to answer."""

    _state: _State = field(init=False, default=_State.DATA)
    _verb: int = field(init=False, default=0)
    _skipped: int = field(init=False, default=0)

    def feed(self, octets: bytes) -> tuple[bytes, bytes]:
        """The data in `octets`, and the answer that the sender is due."""
        if self._state is _State.DATA and IAC not in octets:
            return octets, b""
        data, answer = bytearray(), bytearray()
        for octet in octets:
            state = self._state
            if state is _State.DATA:
                if octet == IAC:
                    self._state = _State.COMMAND
                else:
                    data.append(octet)
            elif state is _State.COMMAND:
                self._command(octet, data)
            elif state is _State.OPTION:
                if reply := _ANSWERS.get(self._verb):
                    answer += bytes((IAC, reply, octet))
                self._state = _State.DATA
            else:
                self._subnegotiation(octet)
        return bytes(data), bytes(answer)

    def _command(self, octet: int, data: bytearray) -> None:
        self._state = _State.DATA
        if octet == IAC:
            data += b"\xff\xff"
        elif octet in (_DO, _DONT, _WILL, _WONT):
            self._verb = octet
            self._state = _State.OPTION
        elif octet == _SB:
            self._skipped = 0
            self._state = _State.SUBNEGOTIATION
        elif octet < _SE:
            data += bytes((IAC, octet))

    def _subnegotiation(self, octet: int) -> None:
        self._skipped += 1
        if self._state is _State.SUBNEGOTIATION:
            self._state = _State.SUBNEGOTIATION_COMMAND if octet == IAC else _State.SUBNEGOTIATION
        else:
            self._state = _State.DATA if octet == _SE else _State.SUBNEGOTIATION
        if self._skipped > _LONGEST_SUBNEGOTIATION:
            self._state = _State.DATA
