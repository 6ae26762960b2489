"""The control socket of a configuration, if it can be had."""

from __future__ import annotations

import logging

from ..config import ControlConfig
from ..control.address import Address, CannotControl
from ..listeners import CannotListen
from ..log import event

__all__ = ["open_control"]

log = logging.getLogger(__name__)


def open_control(config: ControlConfig) -> Address | None:
    """Listen there; None where none is wanted, or the default cannot be had, which is logged.

    Raises `CannotListen` where a socket that is not the default cannot be had.
    """
    if not config.socket:
        return None
    try:
        return Address.open(config.socket, config.group)
    except CannotControl as error:
        if config.socket == ControlConfig().socket:
            event(log, logging.WARNING, "control.off", reason=error)
            return None
        raise CannotListen(f"control.socket: {error}") from error.__cause__
