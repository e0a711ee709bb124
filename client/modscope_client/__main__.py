"""`python -m modscope_client` and the `modscope` command."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]

_COLLECT_AFTER = 200_000
"""Objects made before the garbage collector runs."""


def main() -> int:
    """Runs the command line on this process's arguments and gives the exit code."""
    # The collector would walk all that imports make, often, and again at exit: a fifth of the time. It
    # stays on, for a watch may run for days.
    gc.set_threshold(_COLLECT_AFTER)
    from modscope_client.cli.main import run

    exit_code = run()
    gc.freeze()
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
