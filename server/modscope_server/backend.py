"""What stands behind a scope: the runtime, the server and its place, put together and taken apart."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

import modscope
from modscope_server.config import ServerConfig
from modscope_server.discovery import Place, boot_id
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.safepoint import SafePoint
from modscope_server.server import Server
from modscope_server.services.serving import Serving

__all__ = ["Backend"]

_SETTLE_SECONDS = 2.0


class Backend:
    """Serves models from the moment at which it is made, until `close`.

    Raises ConfigurationError where it cannot; no hook, file or socket is left behind then.
    """

    def __init__(
        self,
        config: ServerConfig,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        extras: Mapping[str, Any],
    ) -> None:
        registry = Registry(models, optimizers)
        limits = config.limits
        scaled = registry.optimizers if extras.get("scaler") is not None else list
        self._hooks = HookManager(
            watches=limits.streams,
            events=limits.queue,
            size=limits.queue_bytes,
            total=limits.bus_bytes,
            block_ms=limits.block_ms,
        )
        with ExitStack() as undo:
            self._safepoint = SafePoint(
                models.values(),
                is_ours=registry.holds,
                ours=registry.ours,
                optimizers=len(optimizers),
                boot_id=boot_id(),
                read_share=config.limits.read_share,
                scaler=extras.get("scaler"),
            )
            undo.callback(self._safepoint.close)
            registry.count_steps_with(lambda: self._safepoint.step_count)
            self._place = Place.create()
            undo.callback(self._place.remove)
            serving = Serving(config, registry, self._safepoint, self._hooks, scaled, extras)
            self._control, self._leases, self._metrics = serving.control, serving.leases, serving.metrics
            self._interventions, self._insight = serving.interventions, serving.insight
            self._budget = serving.budget
            server = self._server = Server(config, serving, self._place)
            undo.callback(server.stop)
            self.address, self.token, self.viewer_token = server.address, server.token, server.viewer_token
            self._place.publish(self._record(config, registry), self.token)
            undo.pop_all()
        mode = "writable" if config.writable else "read-only"
        names = ", ".join(registry.names)
        self.announcement = (
            f"modscope: serving {names} ({mode}) at {self.address}, token file {self._place.token_file}"
        )

    @property
    def step_count(self) -> int:
        """Completed training iterations."""
        return self._safepoint.step_count

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Mark the end of an iteration and take its scalars, on the thread of the loop."""
        self._safepoint.mark_step(lambda step: self._metrics.report(step, metrics))

    def close(self) -> None:
        """Take every hook off, end every call, leave nothing behind; one part that fails stops no other."""
        with ExitStack() as ends:
            ends.callback(self._budget.settle, _SETTLE_SECONDS)
            ends.callback(self._server.stop)
            ends.callback(self._safepoint.close)
            ends.callback(self._insight.close, self._safepoint)
            ends.callback(self._interventions.close)
            ends.callback(self._hooks.stop_all, "server closed")
            ends.callback(self._leases.close)
            ends.callback(self._control.close)
            ends.callback(self._place.remove)

    def abandon(self) -> None:
        """Become inert in a forked child, taking no lock."""
        self._hooks.abandon()
        self._safepoint.abandon()
        self._insight.abandon()

    def _record(self, config: ServerConfig, registry: Registry) -> dict[str, object]:
        """What server.json says."""
        return {
            "address": self.address,
            "pid": os.getpid(),
            "boot_id": boot_id(),
            "started": time.time(),
            "models": registry.names,
            "writable": config.writable,
            "token": self.token,
            "viewer_token": self.viewer_token,
            "tls": config.tls is not None,
            "version": modscope.__version__,
        }
