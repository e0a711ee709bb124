"""Several changes as one, asynchronously: the twin of modscope_client/transaction.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from modscope_client import convert, ledger
from modscope_client.aio.calls import Calls
from modscope_client.transaction import Changes

__all__ = ["Transaction"]


class Transaction(Changes):
    """Changes that take effect at one step boundary, all or none, when the `async with` ends well.

    Its methods collect and need no await.
    """

    def __init__(
        self,
        calls: Calls,
        model: str,
        expected: Mapping[str, str] | None,
        dry_run: bool,
        request_id: str | None,
    ) -> None:
        super().__init__(model, expected, dry_run, request_id)
        self._calls = calls

    async def __aenter__(self) -> Transaction:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send all of it, unless the block raised. Where the server refuses one change, none is done."""
        if self._leave(error):
            answer = await self._calls.upload(ledger.TRANSACT, self._frames(), bulk=self._is_bulk)
            self._operation = convert.operation(answer.operation)
