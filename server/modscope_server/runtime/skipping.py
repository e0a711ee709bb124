"""Steps that a GradScaler skips: no optimizer hook fires for them, so its scale must tell."""

from __future__ import annotations

from typing import Any

__all__ = ["SkippedSteps"]


class SkippedSteps:
    """Counts the iterations in which a GradScaler was updated and no optimizer stepped.

    `GradScaler.update` writes its scale in place once an iteration, so the version of that tensor moves;
    it is read without waiting for the device.

    Args:
        scaler: a torch.amp.GradScaler, or None.
    """

    def __init__(self, scaler: Any) -> None:
        self.count = 0
        self._scaler = scaler
        self._seen = self._version()

    def __bool__(self) -> bool:
        return self._scaler is not None

    def look(self, *, stepped: bool) -> bool:
        """Whether the iteration that just ended was skipped; asked at each training forward and each mark."""
        version = self._version()
        updated = version is not None and version != (self._seen or (version[0], 0))
        self._seen = version
        skipped = updated and not stepped
        self.count += skipped
        return skipped

    def forget(self) -> None:
        """What the scale is now is no news, as after it was loaded."""
        self._seen = self._version()

    def _version(self) -> tuple[int, int] | None:
        scale = getattr(self._scaler, "_scale", None)
        return None if scale is None else (id(scale), scale._version)
