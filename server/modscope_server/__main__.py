"""modscope-server: serve a model that a factory builds, until it is told to stop."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modscope_server.attach import attach
from modscope_server.config import TLS
from modscope_server.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, attach, wait for SIGINT or SIGTERM, close.

    Exit code: 0 ended, 1 cannot serve, 2 usage, 130 interrupted before it served.
    """
    options = _parser().parse_args(arguments)
    wanted = threading.Event()
    try:
        model = _build(options.factory)
        if options.weights is not None:
            _load(model, options.weights)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: wanted.set())
        scope = attach(
            model,
            name=options.name,
            address=options.address,
            writable=options.writable,
            tls=_tls(options),
            token=None if options.token_file is None else _token(options.token_file),
        )
    except ConfigurationError as error:
        print(f"modscope-server: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    with scope:
        wanted.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modscope-server", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "factory",
        metavar="PACKAGE.MODULE:FACTORY",
        help="function that returns a torch.nn.Module, or a mapping from names to modules",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="state_dict to load first")
    parser.add_argument(
        "--address", help="unix:/path or host:port; a Unix socket that clients find by default"
    )
    parser.add_argument("--writable", action="store_true", help="admit changes from the operator token")
    parser.add_argument("--name", default="model", help="name of the model (default: %(default)s)")
    parser.add_argument(
        "--token-file", type=Path, help="file with the operator token; one is drawn by default"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate, PEM; needed beyond loopback")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    return parser


def _build(name: str) -> nn.Module | Mapping[str, nn.Module]:
    """What the factory returns. The working directory can be imported from, as with `python -m`."""
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ConfigurationError(
            f"{name!r} names no factory", hint="give PACKAGE.MODULE:FACTORY, such as train:build_model"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"there is no module {error.name!r}", hint="run it where `import` finds it, or set PYTHONPATH"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(
                f"{module_name} has no {path!r}", hint="name a function that takes no arguments"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(
            f"{name} is a {type(found).__name__}, not a function",
            hint="name a function that returns the model",
        )
    built: nn.Module | Mapping[str, nn.Module] = found()
    return built


def _load(model: nn.Module | Mapping[str, nn.Module], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            "--weights serves one model, and the factory returned several",
            hint="load them in the factory",
        )
    try:
        load_model(model, file)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigurationError(
            f"--weights: {file} cannot be loaded: {error}", hint="give a safetensors file of this model"
        ) from error


def _tls(options: argparse.Namespace) -> TLS | None:
    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ConfigurationError("--tls-cert and --tls-key belong together", hint="give both")
    return TLS(cert=options.tls_cert, key=options.tls_key)


def _token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--token-file: {file} cannot be read: {error}", hint="give a text file"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
