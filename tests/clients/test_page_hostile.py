"""The page and what nobody should send: markup, ten thousand events, an event of megabytes, a strange address."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from urllib.parse import quote

import pytest
from gateways import serving
from kit import proxying
from starlette.applications import Starlette
from starlette.routing import Mount
from test_page import content, drawn, say, text, until, words
from waiting import soon

from natsjobs.http import Gateway, GatewayConfig, gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = '<img src=x onerror="hacked=1"><script>hacked=1</script>\'"><b>b</b>\u202egnp.exe\u2066'


async def test_markup_in_ids_users_events_and_errors_stays_text(tab, open_gateway, jobs):
    """Nothing of it becomes an element or runs, and what would turn text around is spelt."""
    gate = await open_gateway(jobs)
    page = await tab()
    async with jobs.start(MARKUP, user_id=MARKUP, model=MARKUP, metadata={MARKUP: MARKUP}) as run:
        await run.emit({"type": "text-delta", "id": "t", "delta": MARKUP})
        await run.emit({MARKUP: [MARKUP], "__proto__": {"x": 1}, "type": "constructor"})
        await run.emit(MARKUP)
        await run.fail(MARKUP)
    await page.goto(f"http://127.0.0.1:{gate.port}/")
    await page.click("#rows a.open")
    await until(page, "document.querySelector('#job-status').innerText === 'Error'")
    assert await content(page) == f"{MARKUP}{MARKUP}|{MARKUP}"
    await page.click("#tab-events")
    for row in await page.query_selector_all("#panel-events summary"):
        await row.click()
    await page.click("#tab-record")
    assert await page.evaluate("document.querySelectorAll('main img, main script, main b').length") == 0
    assert await page.evaluate("typeof hacked") == "undefined"
    shown = await text(page, "#rows a.open")
    assert "<script>" in shown
    assert "\u27e8202e\u27e9" in shown
    assert "\u202e" not in shown


ODD_IDS = ["a/b", "a%2Fb", "#/job/x?q=1", "?", "*", " ", "é\u0301🦆", "..x", "a;b=c&d", "b"]


async def test_every_id_opens_its_own_job(tab, open_gateway, jobs):
    """By a click, and by the address that the click left; one that no browser can ask for is told."""
    gate = await open_gateway(jobs)
    page = await tab()
    for number, stream_id in enumerate(ODD_IDS):
        async with jobs.start(stream_id, user_id=f"user-{number}") as run:
            await say(run, words(number, number + 2))
    await page.goto(f"http://127.0.0.1:{gate.port}/")
    await until(page, f"document.querySelectorAll('#rows tr').length === {len(ODD_IDS)}")
    for number in range(len(ODD_IDS)):
        await page.locator("#rows tr", has_text=f"user-{number}").locator("a.open").click()
        await drawn(page, words(number, number + 2))
    await page.locator("#rows tr", has_text="user-1").locator("a.open").click()
    await page.reload()
    await drawn(page, words(1, 3))
    await page.evaluate("location.hash = '#/job/..'")
    await until(page, "document.querySelector('#job-notes').innerText.includes('cannot ask')")


async def test_ten_thousand_events_and_one_of_megabytes_leave_the_page_usable(tab, open_gateway, jobs):
    """What is drawn is bounded and says what it leaves out; a click is answered while events pour in."""
    gate = await open_gateway(jobs)
    page = await tab()
    async with jobs.start("s", user_id="alice") as run:
        await say(run, words(0, 10_000))
        await run.emit({"blob": "x" * 3_000_000})
        await run.flush()
        await page.goto(f"http://127.0.0.1:{gate.port}/#/job/s")

        async def pour():
            for number in range(3_000):
                await run.emit({"n": number})
                if number % 50 == 0:
                    await asyncio.sleep(0)

        pouring = asyncio.create_task(pour())
        await page.click("#tab-events")
        await until(page, "document.querySelector('#panel-events > p').innerText.includes('of 13\\u202f001 events')")
        await pouring
        await page.click("#panel-events li:last-child summary")
        assert not await page.is_checked("#follow")
        await run.emit({"one": "more"})
        await until(page, "document.querySelector('#panel-events > p').innerText.includes('of 13\\u202f002 events')")
        assert await page.evaluate("document.querySelectorAll('#panel-events li:has(pre)').length") == 1
        assert await page.evaluate("document.querySelectorAll('#panel-events li').length") == 201
        await page.click("#follow")
        await run.emit({"one": "more"})
        await until(page, "document.querySelector('#panel-events > p').innerText.includes('of 13\\u202f003 events')")
        assert await page.evaluate("document.querySelectorAll('#panel-events li').length") == 200
        await page.click("#tab-content")
        assert "are not drawn" in await text(page, "#panel-content")
        assert (await content(page)).endswith("word9998 word9999 ")
        assert await page.evaluate("document.querySelector('#panel-content').textContent.length") < 100_000


async def test_below_a_prefix_everything_is_found(tab, jobs):
    """Mounted in another application, whose own addresses stay its own."""
    mounted = gateway(jobs, authorize=lambda *_: "me")
    async with serving(Starlette(routes=[Mount("/jobs", mounted)])) as (_, port):
        page = await tab()
        async with jobs.start("s", user_id="alice") as run:
            await say(run, words(0, 3))
            await page.goto(f"http://127.0.0.1:{port}/jobs")
            await page.click("#rows a.open")
            await drawn(page, words(0, 3))
            await page.keyboard.press("a")
            await page.click("#abort-yes")
            await soon(run.wait_aborted())
        await until(page, "document.querySelector('#job-status').innerText === 'Aborted'")
        await page.goto("about:blank")
        mounted.close()


async def test_lost_history_and_newer_turns_are_told_not_glossed_over(tab, open_gateway, jobs):
    """With a way to go on."""
    gate = await open_gateway(jobs)
    page = await tab()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxying(gate.port))
        run = await stack.enter_async_context(jobs.start("s", user_id="alice"))
        await say(run, words(0, 3))
        await page.goto(f"{proxy.url}/#/job/s")
        await drawn(page, words(0, 3))
        proxy.target = 1  # nobody is there
        proxy.cut()
        await run.complete()
        run = await stack.enter_async_context(jobs.start("s", user_id="alice"))
        await say(run, words(10, 13))
        proxy.target = gate.port
        await page.click("text=Show the newest")
        await drawn(page, words(10, 13))
        proxy.target = 1
        proxy.cut()
        await say(run, words(13, 15))
        await run.flush()
        await jobs.store.clear_content_state("s")
        await say(run, words(20, 23))
        proxy.target = gate.port
        await page.click("text=Begin with what is left")
        await drawn(page, words(20, 23))


async def test_the_abort_shows_the_usage_that_it_claimed(tab, open_gateway, jobs):
    """Nobody else gets these entries, so they must not get lost in a page."""
    gate = await open_gateway(jobs)
    page = await tab()
    async with jobs.start("s", user_id="alice") as run:
        await run.record_usage({"input_tokens": 1234, "model": "m"})
        await page.goto(f"http://127.0.0.1:{gate.port}/#/job/s")
        await page.click("#abort")
        await page.click("#abort-yes")
        await soon(run.wait_aborted())
    await until(page, "document.querySelector('#job-notes').innerText.includes('1234')")


async def test_the_page_can_be_left_out_and_lets_nothing_else_in(open_gateway, jobs):
    """No foreign script, frame or form; assets are revalidated; other paths of its folder do not exist."""
    gate = await open_gateway(jobs)
    index = await gate.client.get("/")
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert " style=" not in index.text
    assert "<script>" not in index.text
    for name in ("app.js", "style.css", "icon.svg"):
        got = await gate.client.get(f"/page/{name}")
        assert got.status_code == 200
        again = await gate.client.get(f"/page/{name}", headers={"If-None-Match": got.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("__init__.py", quote("../app.py", safe=""), "x.js", ""):
        assert (await gate.client.get(f"/page/{name}")).status_code == 404
    bare = await open_gateway(jobs, config=GatewayConfig(page=False))
    assert isinstance(bare.app, Gateway)
    assert (await bare.client.get("/")).status_code == 404
    assert (await bare.client.get("/page/app.js")).status_code == 404
