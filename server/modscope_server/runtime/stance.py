"""The stance that torch.compile takes, which one process has one of: eager while somebody wants it so.

Compiled code skips hooks that came after it. Under the stance "force_eager" each function that was compiled
runs as it was written, hooks included; under "default" its compiled code is there again, without being
compiled anew (docs/decisions/0013).

torch.compiler.set_stance raises where the calling thread runs compiled code, as it does in the hooks of an
optimizer inside a compiled step. So one stance of ours is put in place of a "default" one, and is then told
what to be: a `with set_stance(...)` of the program that has kept ours, and gives it back later, gives back
what it is by then.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
import weakref
from collections.abc import Hashable
from typing import Any

from torch._C._dynamo.eval_frame import get_eval_frame_callback

from modscope_server.runtime.activity import others_run_compiled

__all__ = [
    "abandon",
    "holds",
    "inside_compiled_code",
    "keep_out",
    "let_go",
    "of_the_program",
    "run_eagerly",
    "supported",
]

_FREE = "default"
_EAGER = "force_eager"
_BETWEEN = "eager_on_recompile"
"""Compiled code runs, and nothing is compiled anew."""
_SOON, _LATE = 0.01, 1.0
"""Seconds between two looks for the moment in which no thread runs a compiled function."""

_mutex = threading.Lock()
_users: set[Hashable] = set()
_ours: list[weakref.ref[Any]] = []
"""Those that stand in the place of a stance of the program's, or may be put there again by it."""
_settles = False


def supported() -> bool:
    """Whether the compiler is loaded, and is one whose stance can be set."""
    return _compiler() is not None


def of_the_program() -> str:
    """The stance that the program itself has set; "" where that is the default."""
    compiler = _compiler()
    if compiler is None or _is_ours(compiler._stance):
        return ""
    stance: str = compiler._stance.stance
    return "" if stance == _FREE else stance


def holds() -> bool:
    """Whether compiled functions run eagerly, by us or by the program."""
    compiler = _compiler()
    return compiler is not None and compiler._stance.stance == _EAGER


def inside_compiled_code() -> bool:
    """Whether the calling thread is in a function that runs compiled, and will do so to its end."""
    return bool(get_eval_frame_callback())


def keep_out(*functions: Any) -> None:
    """Have the compiler not look at these functions where compiled code calls them from outside of a graph.

    Under the stance "fail_on_recompile" it would raise where it met one for the first time.
    """
    skip: Any = getattr(_compiler(), "skip_code", None)
    if skip is not None:
        for function in functions:
            skip(function.__code__)


def run_eagerly(user: Hashable) -> bool:
    """Have compiled functions run eagerly from their next call on, until `let_go`; whether they do.

    A stance of the program's own stays: the answer is then whether that one is eager. For any thread.
    """
    compiler = _compiler()
    if compiler is None:
        return False
    with _mutex:
        _users.add(user)
        if compiler._stance.stance == _FREE and not _is_ours(compiler._stance):
            # What the program has forced besides is kept for later.
            mine = copy.copy(compiler._stance)
            _ours.append(weakref.ref(mine))
            compiler._stance = mine
        if _is_ours(compiler._stance):
            compiler._stance.stance = _EAGER
    return holds()


def let_go(user: Hashable) -> None:
    """Have the compiled code back, where no other user wants it away. Idempotent; for any thread."""
    global _settles
    with _mutex:
        _users.discard(user)
        if _users or _give_back() or _settles:
            return
        _settles = True
    try:
        threading.Thread(target=_settle, name="modscope-stance", daemon=True).start()
    except RuntimeError:
        # No thread can be started as the interpreter exits, and nothing is compiled anew by then.
        _settles = False


def abandon() -> None:
    """Have the compiled code back, without a lock: for a forked child, where one may be held forever."""
    global _mutex, _settles
    _mutex, _settles = threading.Lock(), False
    _users.clear()
    _be(_FREE)


def _compiler() -> Any:
    """torch's module that keeps the stance; None where it is not loaded, or has none."""
    module = sys.modules.get("torch._dynamo.eval_frame")
    return module if hasattr(module, "_stance") and hasattr(module, "DynamoStance") else None


def _give_back() -> bool:
    """End our part in the stance; False where that would raise in a thread, which is then to be waited for.

    A function that was compiled with fullgraph=True and has begun eagerly raises at its end where the stance
    is the default by then, as if it had found nothing to compile. In the calling thread it is told otherwise.
    """
    if all(mine.stance == _FREE for mine in _living()):
        return True
    _be(_BETWEEN)
    if others_run_compiled():
        return False
    _excuse_this_thread()
    _be(_FREE)
    return True


def _living() -> list[Any]:
    return [mine for known in _ours if (mine := known()) is not None]


def _is_ours(stance: Any) -> bool:
    return any(mine is stance for mine in _living())


def _be(stance: str) -> None:
    """Tell all of ours what to be."""
    _ours[:] = [known for known in _ours if known() is not None]
    for mine in _living():
        mine.stance = stance


def _settle() -> None:
    """Look again and again for the moment in which our part can end."""
    global _settles
    pause = _SOON
    while True:
        time.sleep(pause)
        pause = min(2 * pause, _LATE)
        with _mutex:
            if _users or _give_back():
                _settles = False
                return


def _excuse_this_thread() -> None:
    """Tell torch that the compiled function in which this thread may be has run compiled code."""
    inner = sys.modules.get("torch._C._dynamo.eval_frame")
    count = getattr(inner, "set_fullgraph_compiled_frame_count", None)
    if count is None:
        return
    # Below 0 where none is asked for; another count is taken only where it was taken away.
    found = count(-1)
    if found >= 0:
        count(found or 1)
