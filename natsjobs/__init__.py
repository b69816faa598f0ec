"""Resumable LLM answers and agent runs on NATS: every viewer gets every event once, in order."""

from __future__ import annotations

__version__ = "0.1.0"
