"""Real clients: browsers, SDKs and readers, against real gateways. Tests whose client is not installed are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gateways import OpenGateway, gateways

import natsjobs

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(os.environ.get("NATSJOBS_SHOTS", "")) if os.environ.get("NATSJOBS_SHOTS") else None
"""Where a failing test leaves a picture; else below pytest's own temporary folder."""


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser() -> AsyncIterator[Any]:
    """Headless Chromium, once per worker."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium, or set CHROMIUM)")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        await launched.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note on the test how it went, for the fixture that takes the picture."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


FAILED = pytest.StashKey[bool]()


class Tabs:
    """Opens tabs, and writes down what their pages complain about."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self.contexts: list[Any] = []
        self.complaints: list[str] = []

    async def __call__(self, *, width: int = 1360, height: int = 900, scheme: str = "light", **options: Any) -> Any:
        context = await self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        context.set_default_timeout(30_000)
        self.contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("console", self._heard)
        return page

    def _heard(self, message: Any) -> None:
        lost = "Failed to load resource" in message.text  # answers of 4xx, and connections that tests have cut
        if message.type in {"error", "warning"} and not lost:
            self.complaints.append(f"{message.type}: {message.text}")


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Any, request: pytest.FixtureRequest, tmp_path_factory: Any) -> AsyncIterator[Tabs]:
    """Call it: a tab with nothing of other tests in it. When the test fails there is a picture of each."""
    tabs = Tabs(browser)
    try:
        yield tabs
        if not request.node.stash.get(FAILED, True):
            assert tabs.complaints == []
    finally:
        if request.node.stash.get(FAILED, True):
            folder = SHOTS or tmp_path_factory.getbasetemp()
            for number, context in enumerate(tabs.contexts):
                for page in context.pages:
                    path = folder / f"{request.node.name}-{number}.png"
                    await page.screenshot(path=path)
                    print(f"a picture of the failure: {path}")
        for context in tabs.contexts:
            await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def jobs() -> AsyncIterator[natsjobs.JobManager]:
    """One replica, in memory: what is tested here is above it."""
    async with natsjobs.connect("memory://") as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="session")
async def open_gateway() -> AsyncIterator[OpenGateway]:
    """Call it with a manager: a gateway on a real HTTP server."""
    async with gateways() as start:
        yield start
