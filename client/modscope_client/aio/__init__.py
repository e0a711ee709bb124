"""The async client, with the names of the sync one: `async with aio.connect() as client: ...`."""

from __future__ import annotations

from modscope_client.aio.client import Client, connect
from modscope_client.aio.handles import RemoteModel, RemoteModule, RemoteParameter
from modscope_client.aio.model_interventions import InterventionHandle
from modscope_client.aio.run import Run
from modscope_client.aio.subscription import Subscription
from modscope_client.aio.transaction import Transaction

__all__ = [
    "Client",
    "InterventionHandle",
    "RemoteModel",
    "RemoteModule",
    "RemoteParameter",
    "Run",
    "Subscription",
    "Transaction",
    "connect",
]
