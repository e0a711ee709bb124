"""gRPC and fork: the setting that keeps forked children alive, and what they must forget."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from typing import Protocol

__all__ = ["ModscopeWarning", "forget_in_children", "prepare_grpc"]

_SETTING = "GRPC_ENABLE_FORK_SUPPORT"
_OFF = ("0", "false", "no", "off")


class ModscopeWarning(UserWarning):
    """Something about this process that can make modscope or training fail later."""


class Forgetful(Protocol):
    """What holds references that are dead in a forked child."""

    def forget(self) -> None:
        """Become inert, in a child, taking no lock."""


def prepare_grpc() -> None:
    """Switch off grpc's fork handlers before grpc is first imported; warn where it is too late.

    With them, forked DataLoader workers crash now and then under an open stream.
    """
    if os.environ.get(_SETTING, "").lower() in _OFF:
        return
    late = "grpc" in sys.modules
    os.environ[_SETTING] = "0"
    if late:
        warnings.warn(
            f"grpc was imported before modscope_server.attach and without {_SETTING}=0: forked processes, "
            f"such as DataLoader workers, may crash. Set {_SETTING}=0 in the environment, or call attach "
            "before the first import of grpc.",
            ModscopeWarning,
            stacklevel=3,
        )


_holders: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_registered = False


def forget_in_children(holder: Forgetful) -> None:
    """Call `holder.forget()` in every child that this process forks from now on."""
    global _registered
    _holders.add(holder)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_all)
        _registered = True


def _forget_all() -> None:
    for holder in list(_holders):
        holder.forget()
    _holders.clear()
