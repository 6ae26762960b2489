"""pf, the packet filter of OpenBSD and FreeBSD, as far as data connections need it.

    anchor     a `PathSpec` as the text that pfctl(8) loads: pure
    messages   what is said over the pipe: pure
    engine     the small process with root's rights: loads anchors, makes foreign sockets, and nothing else
    client     the unprivileged end of the pipe

`dtp/pf.py` is the data plane on top of it, and `intercept/pf.py` the gate.
"""

__all__ = ["EngineError"]


class EngineError(Exception):
    """There is no pf engine; the text says why.  `denied`: for lack of privileges."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.denied = "ermission denied" in why or "not permitted" in why
