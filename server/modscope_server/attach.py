"""attach: the one line that a training script adds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modscope_server.config import TLS, Limits, ServerConfig
from modscope_server.errors import ConfigurationError
from modscope_server.fork import prepare_grpc
from modscope_server.scope import DisabledScope, Scope

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["attach"]


def attach(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    name: str = "model",
    address: str | None = None,
    writable: bool = False,
    tls: TLS | tuple[str, str] | None = None,
    token: str | None = None,
    limits: Limits | None = None,
    *,
    extras: Mapping[str, Any] | None = None,
) -> Scope:
    """Serve a live model over gRPC from this process.

    Args:
        model: the model, or several by name.
        optimizer: the optimizers that train it; None lets modscope find those that hold its parameters.
        name: name of a single model.
        address: `unix:/path` or `host:port`, port 0 for a free one; None is a Unix socket that clients
            of the same user on this host find by themselves.
        writable: whether the operator token admits mutating calls.
        tls: certificate and key; needed where the address can be reached from other hosts.
        token: the operator token; None draws one.
        limits: how much of the process modscope may take.
        extras: other parts of the loop by name, such as a GradScaler as "scaler".

    Returns a scope that is open until it is closed or the interpreter exits. Under
    MODSCOPE_DISABLE=1 it is one that does nothing. Raises ConfigurationError for arguments that
    cannot serve, saying what to give instead; later nothing is raised into the training loop.
    """
    if os.environ.get("MODSCOPE_DISABLE", "").lower() in ("1", "true", "yes", "on"):
        return DisabledScope()
    config = _config(address, writable, tls, token, limits)
    models = _models(model, name)
    optimizers = _optimizers(optimizer)
    _check_extras(extras)
    prepare_grpc()
    from modscope_server.backend import Backend

    backend = Backend(config, models, optimizers, extras or {})
    scope = Scope(backend)
    print(backend.announcement, file=sys.stderr, flush=True)
    return scope


def _config(
    address: str | None,
    writable: bool,
    tls: TLS | tuple[str, str] | None,
    token: str | None,
    limits: Limits | None,
) -> ServerConfig:
    if address is not None and not isinstance(address, str):
        raise ConfigurationError(
            f"address is a {type(address).__name__}", hint="give 'unix:/path' or 'host:port'", field="address"
        )
    if isinstance(tls, tuple):
        if len(tls) != 2:
            raise ConfigurationError(
                f"tls is a tuple of {len(tls)}", hint="give (certificate file, key file)", field="tls"
            )
        tls = TLS(cert=tls[0], key=tls[1])
    return ServerConfig(
        address=address,
        writable=bool(writable),
        tls=tls,
        token=token,
        limits=Limits() if limits is None else limits,
    )


def _models(model: nn.Module | Mapping[str, nn.Module], name: str) -> dict[str, nn.Module]:
    from torch import nn

    models: dict[Any, Any] = {name: model}
    if isinstance(model, Mapping) and not isinstance(model, nn.Module):
        models = dict(model)
    if not models:
        raise ConfigurationError(
            "model is an empty mapping", hint="give at least one torch.nn.Module", field="model"
        )
    for key, value in models.items():
        if not isinstance(key, str) or not key or not key.isprintable():
            raise ConfigurationError(
                f"{key!r} is no name for a model",
                hint="give printable text, at least one character",
                field="name",
            )
        if not isinstance(value, nn.Module):
            raise ConfigurationError(
                f"model {key!r} is a {type(value).__name__}, not a torch.nn.Module",
                hint="give the module itself, or a mapping from names to modules",
                field="model",
            )
    return models


def _optimizers(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    from torch.optim import Optimizer

    if optimizer is None:
        return []
    optimizers: list[Any] = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    for value in optimizers:
        if not isinstance(value, Optimizer):
            raise ConfigurationError(
                f"optimizer: a {type(value).__name__} is no torch.optim.Optimizer",
                hint="give an Optimizer, a list of them, or None",
                field="optimizer",
            )
    return optimizers


def _check_extras(extras: Mapping[str, Any] | None) -> None:
    if extras is not None and not isinstance(extras, Mapping):
        raise ConfigurationError(
            f"extras is a {type(extras).__name__}",
            hint="give a mapping such as {'scaler': scaler}",
            field="extras",
        )
