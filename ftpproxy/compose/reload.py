"""Reload: another configuration for the process that runs, without a gap in accept and without a session lost.

    read and check the file -> compose its services -> look at its sources -> change the listeners -> the rest
                  any of these fails: what was made is given back, nothing has changed, and every problem is named

Sessions keep the terms that they began with, and with them the planes and the gate, which are closed when the last of
them has left.  What belongs to the process and not to a service (its user, its privileges, its sockets for control and
metrics, the form of the log) is made once at the start; where the file says something else now, the answer names it.
Redirect rules are the administrator's to load, and a changed need for them is said.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator

import attrs
import trio
from attrs import define, evolve, field

from .. import advice, log, rules
from ..announce import Announcer
from ..config import Config, ConfigError
from ..control.desk import Answer, Facts, Refusal
from ..gates import least_data_port, must_ask_pf
from ..listeners import CannotListen
from ..log import event
from ..passwords import BadUsersFile
from ..server import Server
from ..service import Service
from ..show import count
from ..vitals import Vitals
from ..xferlog import Xferlog
from .services import Shared, compose

__all__ = ["Reload"]

EX_FAILURE = 1
CHANGEABLE = {"log": {"level", "xferlog"}, "process": {"drain"}}
"""Keys beside the services that a reload can change."""

_log = logging.getLogger(__name__)


@define
class Reload:
    """How to do it for one process.  Call it, or let a signal do so with `by_signal`."""

    server: Server
    shared: Shared
    config: Config
    """What is in force."""
    facts: Facts
    vitals: Vitals
    read: Callable[[], Config]
    """Read it again, in a thread.  Raises `ConfigError`."""
    nursery: trio.Nursery
    """Outlives every reload."""
    make_room: Callable[[Config], None]
    """For the descriptors of as many sessions."""
    _at_once: trio.Lock = field(factory=trio.Lock)
    _at_start: Config = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._at_start = self.config

    def by_signal(self) -> None:
        """Begin one, of which only the log will tell."""
        self.nursery.start_soon(self._quietly)

    async def _quietly(self) -> None:
        try:
            await self()
        except Refusal:
            pass  # it is in the log

    async def __call__(self) -> Answer:
        """Do it.  Returns `notes`, a list of sentences.  Raises `Refusal`, with `problems` where the file has some."""
        async with self._at_once:
            self.vitals.reloading()
            try:
                return await self._reload()
            except Refusal as refusal:
                for problem in refusal.answer.get("problems") or [str(refusal)]:
                    event(_log, logging.ERROR, "reload.refused", file=self.facts.file, reason=problem)
                raise
            except Exception as error:
                _log.exception("internal.error")  # whatever is in a file, the service goes on as it is
                raise Refusal(f"internal error: {type(error).__name__}; the log has more", os.EX_SOFTWARE) from None
            finally:
                self.vitals.ready()

    async def _reload(self) -> Answer:
        if self.server.draining:
            raise Refusal("the process is about to end", EX_FAILURE)
        try:
            config = await trio.to_thread.run_sync(self.read)
        except ConfigError as error:
            raise self._refused(*map(str, error.problems)) from None
        if problems := list(_out_of_reach(config, self.shared)):
            raise self._refused(*problems)
        xferlog = self._xferlog(config)
        announcer = Announcer()
        shared = evolve(self.shared, announcer=announcer, xferlog=xferlog)
        services: list[Service] = []
        try:
            for each in config.services:
                services.append(compose(each, shared))
            await self.nursery.start(announcer.run)
            self.server.adopt(services)
        except BaseException as error:
            announcer.stop()
            for service in services:
                service.close()
            if xferlog is not None and xferlog is not self.shared.xferlog:
                xferlog.close()
            if isinstance(error, BadUsersFile | CannotListen):
                raise self._refused(str(error)) from None
            raise
        return self._settle(config, shared, len(services))

    def _settle(self, config: Config, shared: Shared, services: int) -> Answer:
        """The new services have taken over: the rest."""
        before, self.config = self.config, config
        of_before, self.shared = self.shared, shared
        of_before.announcer.stop()
        self.make_room(config)
        log.set_level(logging.getLevelNamesMapping()[config.log.level.upper()])
        self.facts.reloads += 1
        self.facts.reloaded = round(time.time(), 3)
        notes = [*_unchanged(self._at_start, config), *_rules(before, config)]
        notes += [f'service "{each.service}".data_ports: warning: {each}' for each in advice.port_overlaps(config)]
        for note in notes:
            event(_log, logging.WARNING, "reload.note", note=note)
        event(_log, logging.INFO, "reloaded", file=self.facts.file, services=services)
        return {"services": services, "notes": notes}

    def _xferlog(self, config: Config) -> Xferlog | None:
        """Opened anew, also under the same name: it may have been moved away.  Raises `Refusal`."""
        path, present = config.log.xferlog, self.shared.xferlog
        try:
            if path is None or path != self.config.log.xferlog or present is None:
                return None if path is None else Xferlog(path)
            present.reopen()
        except OSError as error:
            raise self._refused(f"log.xferlog: {path}: {error.strerror}") from None
        return present

    @property
    def _source(self) -> str:
        return self.facts.file or "the command line"

    def _refused(self, *problems: str) -> Refusal:
        return Refusal(
            f"{self._source} has {count(len(problems), 'problem')}; nothing has changed",
            os.EX_CONFIG,
            problems=[f"{self._source}: {problem}" for problem in problems],
        )


def _out_of_reach(config: Config, shared: Shared) -> Iterator[str]:
    """What services need that is made at the start only, while the process still has its privileges."""
    if shared.engine is not None and (least := least_data_port(config.services)) < shared.engine.least_port:
        yield f"the pf engine opens no data port below {shared.engine.least_port} until a restart, and {least} is named"
    for service in config.services:
        if shared.elements is None and service.needs_table:
            yield f'service "{service.name}": the table in nftables is made at the start only: restart'
        if shared.engine is None and "pf" in service.planes:
            yield f'service "{service.name}".planes: the pf engine is started at the start only: restart'
        if shared.lookup is None and must_ask_pf(service):
            yield f'service "{service.name}".intercept: /dev/pf is opened at the start only: restart'


def _unchanged(at_start: Config, config: Config) -> Iterator[str]:
    """What the file says and only a restart would bring about."""
    for table in attrs.fields(Config):
        if table.name == "services":
            continue
        old, new = getattr(at_start, table.name), getattr(config, table.name)
        for key in attrs.fields(type(new)):
            if key.name not in CHANGEABLE.get(table.name, ()) and getattr(old, key.name) != getattr(new, key.name):
                yield f"{table.name}.{key.name} changes with a restart only"


def _rules(before: Config, config: Config) -> Iterator[str]:
    """Whether other redirect rules are needed now."""
    try:
        wanted = rules.text(config)
        if wanted == rules.text(before):
            return
    except (ConfigError, rules.RulesError):
        return  # no rules of ours
    yield "the redirect rules have changed: ftpproxy rules -c FILE --apply"
