"""What is said on stderr of hooks that are blind: when they turn so, when they see again, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from modscope_client.cli.messages import note
from modscope_client.cli.text import hook_path, one_line, plural
from modscope_client.errors import ModscopeError

if TYPE_CHECKING:
    from modscope_client.handles import RemoteModel
    from modscope_client.subscription import Watching
    from modscope_client.types import HookInfo

__all__ = ["HookNotes"]

_PATHS_SHOWN = 4
_TOO_EARLY = "too early to say why"


class HookNotes:
    """Follows the hooks of a watch, live or recorded, through all the connections that it has."""

    def __init__(self, say: Callable[[str], object] = note) -> None:
        """say: called with each text."""
        self._say = say
        self._latest: dict[tuple[str, str], HookInfo] = {}
        self._blind: list[HookInfo] = []
        self._partial: list[HookInfo] = []
        self._back: list[HookInfo] = []
        self._looked = False

    def follow(self, watch: Watching) -> None:
        """Say what this watch tells of its hooks; called before it is entered."""
        watch.noticed, watch.settled = self._notice, self._tell

    def look(self, model: RemoteModel, watch: Watching) -> None:
        """Ask once more how they are, while they stand: what the watch has told may be some seconds old."""
        try:
            hooks = model.hooks()
        except ModscopeError:
            return
        self._looked = True
        self._latest |= {_key(hook): hook for hook in hooks if watch.watch_id in hook.watch_ids}

    def sum_up(self, *, cut_short: bool = False) -> None:
        """Say which have never fired, and why, and what compiled code has cost.

        Without a last look only the blind ones, and so where the end has cut it short: others may have fired
        since, or would have.
        """
        silent = [hook for hook in self._latest.values() if not hook.fired]
        if cut_short or not self._looked:
            silent = [hook for hook in silent if hook.state == "blind"]
        self._list(silent, "never fired", "never fired")
        costs = dict.fromkeys(hook.remedy for hook in self._latest.values() if hook.remedy)
        if costs:
            self._say(f"so that hooks fire, compiled code ran eagerly: {', '.join(costs)}")

    def _notice(self, hook: HookInfo) -> None:
        before = self._latest.get(_key(hook))
        self._latest[_key(hook)] = hook
        was_blind = before is not None and before.state == "blind"
        is_told = before is not None and before.reason == hook.reason
        if hook.state == "blind":
            if not (was_blind and is_told):
                self._blind.append(hook)
            return
        if was_blind:
            self._back.append(hook)
        if hook.state == "fired" and hook.reason and not is_told:
            self._partial.append(hook)

    def _tell(self) -> None:
        """Say what one message has brought, hooks of the same reason together."""
        self._list(self._back, "sees again", "see again", why=False)
        self._list(self._blind, "is blind", "are blind")
        self._list(self._partial, "does not see all", "do not see all")
        for told in (self._blind, self._partial, self._back):
            told.clear()

    def _list(self, hooks: Iterable[HookInfo], does: str, do: str, *, why: bool = True) -> None:
        kinds: dict[tuple[str, str], list[str]] = {}
        for hook in hooks:
            reason = (hook.reason or _TOO_EARLY) if why else ""
            kinds.setdefault((reason, hook_path(hook.path, hook.kind)), []).append(hook.kind)
        alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (reason, path), of_it in kinds.items():
            alike.setdefault((reason, tuple(of_it)), []).append(path)
        for (reason, of_them), paths in alike.items():
            told = f": {one_line(reason)}" if reason else ""
            is_one = len(paths) == len(of_them) == 1
            self._say(f"{_whose(paths, of_them)} {does if is_one else do}{told}{_which(paths)}")


def _key(hook: HookInfo) -> tuple[str, str]:
    return hook.path, hook.kind


def _whose(paths: list[str], kinds: tuple[str, ...]) -> str:
    """Hooks of these kinds at each of these paths, as the subject of a sentence."""
    kind = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    if len(paths) == 1:
        return f"{paths[0]}: its {kind} {'hook' if len(kinds) == 1 else 'hooks'}"
    noun = "parameter" if set(kinds) <= {"parameter", "gradient"} else "module"
    return f"{plural(len(paths), noun)}: their {kind} hooks"


def _which(paths: list[str]) -> str:
    """The first of several."""
    if len(paths) == 1:
        return ""
    rest = len(paths) - _PATHS_SHOWN
    return f" ({', '.join(paths[:_PATHS_SHOWN])}{f' and {rest:,} more' if rest > 0 else ''})"
