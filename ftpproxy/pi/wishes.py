"""What a client of the gateway mode wants, told in one of many styles: commands in, a `Wish` out.

Each command has one outcome: something to answer, a password to check, or a server to call with what is to be said
to it.  Who has to log in to the proxy, and has not, gets no server.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, evolve, field, frozen

from ..endpoints import Endpoint
from ..freezing import GIVEN
from .destinations import FTP_PORT, Destinations, Target, parse_target
from .handover import Naming

__all__ = ["STYLES", "Answer", "LoginSettings", "Outcome", "Verify", "Wish", "Wishes"]

STYLES = ("user@host", "proxyuser@host", "user@host proxyuser", "user@proxyuser@host", "site", "open", "host")


def _nowhere() -> Destinations:
    return Destinations()


@frozen(kw_only=True)
class LoginSettings:
    """What `[service.gateway]` says."""

    destinations: Destinations = field(factory=_nowhere)
    hosts: Mapping[str, Endpoint] = field(factory=dict)
    """Names of our own, in lower case, and the servers behind them; these need no entry in `destinations`."""
    styles: frozenset[str] = frozenset(STYLES)
    authenticate: bool = False
    """Whether a client has to log in to the proxy first."""

    def mapped(self, target: Target) -> Endpoint | None:
        """The server behind one of our own names; with another port it is no name of ours."""
        server = self.hosts.get(target.host)
        return server if server is not None and target.port in (FTP_PORT, server.port) else None


@frozen
class Wish:
    """A server, and what to say to it."""

    target: Target
    user: bytes = b""
    """For USER; empty where the client will say that itself."""
    password: bytes | None = field(default=None, repr=False)
    """For PASS; None where the client will say that itself."""
    naming: Naming = Naming.PLAIN


@frozen
class Answer:
    """A reply of ours; `refused` if the command made no sense here."""

    code: int
    text: str
    refused: bool = False


@frozen
class Verify:
    """Check a proxy user's password, then `verified`."""

    user: bytes
    password: bytes = field(repr=False)


Outcome = Answer | Verify | Wish


@define
class _ProxyLogin:
    """USER was said; PASS, or PASS and ACCT, are to come."""

    user: bytes
    wish: Wish | None = None
    split: bool = False
    """PASS carries both passwords: p@pp."""
    account: bool = False
    """PASS is the server's, ACCT ours."""


def _refuse(code: int, text: str) -> Answer:
    return Answer(code, text, refused=True)


@define(eq=False)
class Wishes:
    """What one client has said so far."""

    _settings: LoginSettings = field(metadata=GIVEN)
    proxy_user: bytes = field(init=False)
    """Who is logged in to the proxy."""
    _authenticated: bool = field(init=False)
    _login: _ProxyLogin | None = field(init=False)
    _host: Target | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """REIN: as in the beginning."""
        self.proxy_user = b""
        self._authenticated = not self._settings.authenticate
        self._login = self._host = None

    def verified(self, right: bool) -> Answer | Wish:
        """The answer to the last `Verify`."""
        login, self._login = self._login, None
        assert login is not None
        self._authenticated = right
        self.proxy_user = login.user if right else b""
        if not right:
            return Answer(530, "Login to the proxy failed.")
        return login.wish or Answer(230, "Logged in to the proxy; name the server now.")

    # Commands

    def user(self, argument: bytes) -> Outcome:
        """USER, in any of its styles."""
        self._login = None
        user, at, where = argument.rpartition(b"@")
        if not at:
            return self._plain_user(argument)
        host, _, third = where.partition(b" ")
        if third.strip(b" ").isdigit():
            host, third = where, b""  # "host port"
        try:
            target = parse_target(host)
        except ValueError:
            target = None
        if target is None or not user:
            return _refuse(501, "Write USER user@host or USER user@host:port.")
        if third:
            login = _ProxyLogin(third, Wish(target, user, naming=Naming.COMBINED), account=True)
            return self._begin("user@host proxyuser", login)
        if self._authenticated:
            return self._if("user@host") or Wish(target, user, naming=Naming.AT_HOST)
        if b"@" in user and "user@proxyuser@host" in self._settings.styles:
            user, _, proxy_user = user.rpartition(b"@")
            login = _ProxyLogin(proxy_user, Wish(target, user, naming=Naming.COMBINED), split=True)
            return self._begin("user@proxyuser@host", login)
        return self._begin("proxyuser@host", _ProxyLogin(user, Wish(target, naming=Naming.PROXY_USER)))

    def _plain_user(self, user: bytes) -> Outcome:
        if self._authenticated and self._host is not None and user:
            return Wish(self._host, user)
        if not self._settings.authenticate or not user:
            return _refuse(530, "Name the server: USER user@host.")
        self._authenticated = False
        return self._ask(_ProxyLogin(user))

    def _if(self, style: str) -> Answer | None:
        """The refusal of a style that is switched off."""
        on = style in self._settings.styles
        return None if on else _refuse(530, "That way to log in is not available here.")

    def _begin(self, style: str, login: _ProxyLogin) -> Answer:
        if not self._settings.authenticate:
            return _refuse(530, "The proxy has no users: USER user@host is enough.")
        return self._if(style) or self._ask(login)

    def _ask(self, login: _ProxyLogin) -> Answer:
        self._login = login
        return Answer(331, "Password required.")

    def password(self, argument: bytes) -> Outcome:
        """PASS."""
        login = self._login
        wish = login and login.wish
        if login is None or (wish and wish.password is not None):
            return _refuse(503, "USER comes first.")
        if wish and login.account:
            login.wish = evolve(wish, password=argument)
            return Answer(332, "ACCT with the password of the proxy user is required.")
        if wish and login.split:
            password, _, argument = argument.rpartition(b"@")
            login.wish = evolve(wish, password=password)
        return Verify(login.user, argument)

    def account(self, argument: bytes) -> Outcome:
        """ACCT: the third part of a three-part login."""
        login = self._login
        if login is None or not login.account or login.wish is None or login.wish.password is None:
            return _refuse(503, "USER and PASS come first.")
        return Verify(login.user, argument)

    def open(self, verb: bytes, argument: bytes) -> Outcome:
        """SITE or OPEN with a host."""
        if refusal := self._if(verb.decode("ascii").lower()):
            return refusal
        if not self._authenticated:
            return _refuse(530, "Log in to the proxy first.")
        try:
            return Wish(parse_target(argument))
        except ValueError:
            return _refuse(501, "A host, host:port or host port is expected.")

    def host(self, argument: bytes) -> Outcome:
        """HOST (RFC 7151 section 3): a name without a port; the last one that succeeded counts."""
        try:
            target = parse_target(argument)
        except ValueError:
            return _refuse(501, "Write HOST name.")
        if argument.count(b":") == 1 or b"]:" in argument or b" " in argument.strip(b" "):
            return _refuse(501, "HOST takes no port.")
        if target.host not in self._settings.hosts or "host" not in self._settings.styles:
            return _refuse(504, "That host is not served here.")
        self._host = target
        return Answer(220, "Host accepted.")
