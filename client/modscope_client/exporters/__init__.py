"""Sinks for monitoring tools. Each imports its own library when it is opened, none before."""

from __future__ import annotations

from modscope_client.exporters import jsonl, prometheus, tensorboard

__all__ = ["jsonl", "prometheus", "tensorboard"]
