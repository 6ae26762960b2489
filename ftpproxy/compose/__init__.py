"""Composition: from a configuration to a running server.  The only room that knows every class.

`services` makes the services of a configuration; here is the life of the process around them: what is opened, in which
order, and what each failure is told as.
"""

from __future__ import annotations

import gc
import logging
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from .. import advice, netfilter, process, rules
from .. import log as logs
from ..activation import Inherited, Supervisor, inherited
from ..announce import Announcer
from ..config import Config
from ..control.desk import Desk, Facts
from ..control.hall import Hall
from ..doors import Doors
from ..errands import Errands
from ..gates import least_data_port, needs_engine, open_lookup
from ..log import event
from ..nathook import NatHook
from ..passwords import BadUsersFile
from ..pf import EngineError
from ..pf.natlook import NatlookError
from ..privileges import PrivilegeError
from ..scrape import CannotServe
from ..server import CannotListen, Server
from ..switchboard import Switchboard
from ..table import FORM, Claim, may_load
from ..vitals import Vitals
from ..xferlog import Xferlog
from . import monitoring
from .control import open_control
from .heritage import Heritage, Successor
from .keeper import Keeper
from .reload import Reload
from .services import Shared, compose

if TYPE_CHECKING:
    from ..pf.client import Engine

__all__ = ["run"]

EX_OK, EX_UNAVAILABLE, EX_NOPERM, EX_CONFIG = 0, 69, 77, 78
"""sysexits(3)."""

DESCRIPTORS_A_SESSION = 10
"""Two control sockets, two data sockets, a listener and two pipes, and the same again for a transfer that drains."""

SECONDS_FOR_ANOTHER = 2.0
"""How long another process with our table may take to start."""

HELD_BACK = (signal.SIGHUP, signal.SIGUSR2)

Orders = Mapping[signal.Signals, Callable[[], object]]
"""What to do at which signal."""

log = logging.getLogger(__name__)


class _Closes(Protocol):
    def close(self) -> object: ...


T = TypeVar("T", bound=_Closes | None)


def run(
    config: Config, read: Callable[[], Config], ready: Callable[[], None] = lambda: None, file: str | None = None
) -> int:
    """Serve `config` until a signal ends it.  Returns an exit code; expected failures are said on standard error.

    `read` reads it again, for a reload; it raises `ConfigError`.  `ready` is called once everything stands that may
    fail.  `file` is where the configuration was read, None where it is not a file's.
    """
    _hold_back()
    passed, supervisor = inherited(), Supervisor.from_environment()
    most = {service.name: service.limits.sessions for service in config.services}
    logs.set_up(logging.getLevelNamesMapping()[config.log.level.upper()], config.log.format, most)
    _spare_the_collector()
    _raise_descriptor_limit(config)
    # Behind that: what is left may be more descriptors than we were allowed so far.
    heritage, successor = Heritage.found(passed, supervisor), Successor(supervisor, read, file)
    claim: Claim | None = None
    engine: Engine | None = None
    try:
        claim = _claim(config)
        engine = _engine(config)
        code = trio.run(_serve, config, claim, engine, passed, supervisor, heritage, successor, read, ready, file)
    except netfilter.NoPermission as error:
        return _fail(str(error), EX_NOPERM)
    except netfilter.NetfilterError as error:
        return _fail(str(error), EX_UNAVAILABLE)
    except EngineError as error:
        return _fail(str(error), EX_NOPERM if error.denied else EX_UNAVAILABLE)
    except BadUsersFile as error:
        return _fail(str(error), EX_CONFIG)
    except (CannotListen, CannotServe) as error:
        denied = isinstance(error.__cause__, PermissionError)
        return _fail(str(error), EX_NOPERM if denied else EX_UNAVAILABLE)
    except NatlookError as error:
        return _fail(str(error), EX_NOPERM if isinstance(error.__cause__, PermissionError) else EX_UNAVAILABLE)
    except process.NoSuchUser as error:
        return _fail(str(error), EX_CONFIG)
    except PrivilegeError as error:
        return _fail(str(error), EX_NOPERM)
    finally:
        if engine is not None:
            engine.close()
        if claim is not None:
            claim.close()
    return successor.begin() if successor.left else code


def _hold_back() -> None:
    """Signals of ours wait until `Server.run` hears them, and again when it has ended: what they do by default would be
    the end of every session that waits for a successor.  Held back is held back across execve(2), too.  A thread that
    is left over may still take one: nothing happens then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    for number in HELD_BACK:
        signal.signal(number, lambda *_: None)


def _engine(config: Config) -> Engine | None:
    """The pf engine where a service needs it, while we are still root.  Raises `EngineError`."""
    if not needs_engine(config.services):
        return None
    from ..pf.client import start

    return start(least_port=least_data_port(config.services))


def _claim(config: Config) -> Claim | None:
    """The right to our table where a service needs it.  Those that find out by themselves what they need share it."""
    needing = [
        service for service in config.services if service.needs_table or (service.intercept == "auto" and may_load())
    ]
    return Claim(share=all(service.intercept == "auto" for service in needing)) if needing else None


def _fail(text: str, code: int) -> int:
    print(f"ftpproxy: {text}", file=sys.stderr)
    return code


async def _serve(
    config: Config,
    claim: Claim | None,
    engine: Engine | None,
    passed: Sequence[Inherited],
    supervisor: Supervisor,
    heritage: Heritage,
    successor: Successor,
    read: Callable[[], Config],
    ready: Callable[[], None],
    file: str | None,
) -> int:
    """From what stands already to a server that runs, and everything that was opened here closed behind it."""
    with ExitStack() as stack:
        stack.callback(heritage.close)

        def leave_table() -> None:
            """Behind the last sweep, which may load it."""
            if claim is not None and successor.left:
                claim.leave()

        stack.callback(leave_table)
        board = _closed(stack, Switchboard())
        board.now = trio.current_time()  # what a predecessor has left is of this moment
        _closed(stack, engine)
        elements = _closed(stack, None if claim is None else netfilter.Elements(claim.load, FORM))
        hook = _closed(stack, NatHook() if config.process.keep_nat else None)
        xferlog = _closed(stack, _xferlog(config))
        doors = _closed(stack, Doors(board))
        lookup = _closed(stack, open_lookup(config.services))
        announcer, errands = Announcer(), Errands(board)
        shared = Shared(board, doors, elements, engine, announcer, errands, xferlog, lookup)
        services = [compose(service, shared) for service in config.services]
        server = _closed(stack, Server(board, services, errands, announcer=announcer))
        board.sweep(logs.sweep, logs.sweep_crashed)

        server.listen(process.given(passed, config.services), heritage.listeners())
        address = _closed(stack, open_control(config.control))
        if claim is not None and not (elements and heritage.table(elements) and claim.adopt()):
            claim.load(SECONDS_FOR_ANOTHER)  # behind the listeners: a start that fails must not touch what is there
        if elements is None or claim is None:
            heritage.clear_table()
        else:
            keep = Keeper(
                claim, elements, hook, lambda: successor.left or any(each.needs_table for each in server.occupied)
            )
            keep(0.0)
            board.sweep(keep, keep.crashed)
        scrape = _closed(stack, monitoring.scrape(config.metrics, server, elements))
        belongings = address.belongings if address is not None else ()
        process.drop_privileges(config, table=claim is not None, belongings=belongings, xferlog=xferlog)
        _warn(config)
        for line in engine.missing_lines if engine is not None else ():
            event(log, logging.WARNING, "pf.anchor_missing", line=line)
        vitals = Vitals(supervisor, server, board)
        heritage.sessions(server, doors, elements)

        def tell() -> None:
            event(log, logging.INFO, "ready", services=len(services))
            ready()
            vitals.ready()

        async with trio.open_nursery() as nursery:
            facts = Facts(file, started=time.time())
            reload = Reload(server, shared, config, facts, vitals, read, nursery, _raise_descriptor_limit)

            def terminate() -> None:
                vitals.stopping("finishing transfers")
                server.terminate(reload.config.process.drain)

            def restart() -> None:
                if successor.possible():
                    vitals.stopping("restarting")
                    successor.provide(server, board, doors, elements)
                    server.stop()

            orders: Orders = {
                signal.SIGTERM: terminate,
                signal.SIGHUP: reload.by_signal,
                signal.SIGUSR2: restart,
            }
            if address is not None:
                nursery.start_soon(Hall(address, Desk(server, facts, reload)).run)
            if scrape is not None:
                nursery.start_soon(scrape.run)
            await _run(server, orders, tell, engine, board)
            nursery.cancel_scope.cancel()
        if not successor.left:
            vitals.stopping("stopping")
        if engine is not None and engine.over:
            event(log, logging.CRITICAL, "pf.engine_lost", reason=engine.over)
            raise EngineError(f"{engine.over}; the service cannot go on without it")
    return EX_OK


def _closed(stack: ExitStack, thing: T) -> T:
    """`thing`, which goes with the stack if there is one."""
    if thing is not None:
        stack.callback(thing.close)
    return thing


async def _run(
    server: Server, orders: Orders, ready: Callable[[], None], engine: Engine | None, board: Switchboard
) -> None:
    """Serve, until a signal or the end of the engine that some services need."""
    with trio.CancelScope() as scope:
        if engine is not None:
            engine.attach(board, lambda _: scope.cancel())
        await server.run(orders, ready)


def _xferlog(config: Config) -> Xferlog | None:
    if config.log.xferlog is None:
        return None
    try:
        return Xferlog(config.log.xferlog)
    except OSError as error:
        raise CannotListen(f"log.xferlog: {config.log.xferlog}: {error.strerror}") from error


def _warn(config: Config) -> None:
    """Say in the log what about this machine will make sessions fail."""
    for overlap in advice.port_overlaps(config):
        event(
            log,
            logging.WARNING,
            "data_ports.overlap",
            service=overlap.service,
            data_ports=overlap.data_ports,
            ip_local_port_range=overlap.local,
        )
    if advice.rules_missing(config):
        event(log, logging.WARNING, "rules.missing", table=f"inet {rules.TABLE}", hint="ftpproxy rules -c FILE --apply")


def _spare_the_collector() -> None:
    """Modules live for ever and sessions for long: what the default collector walks through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _raise_descriptor_limit(config: Config) -> None:
    """As many descriptors as the configured sessions need; said in the log where the system does not allow them."""
    wanted = 64 + DESCRIPTORS_A_SESSION * sum(service.limits.sessions for service in config.services)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    for limit in ((wanted, max(hard, wanted)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            break
        except (ValueError, OSError):
            pass  # beyond the hard limit takes a privilege, and a seccomp filter may forbid any
    if (soft := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < wanted:
        event(log, logging.WARNING, "descriptors.few", allowed=soft, wanted=wanted)
