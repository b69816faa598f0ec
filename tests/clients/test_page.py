"""The page at ``/`` in a real browser, as operators use it: watch, search, reload, lose the gateway, abort."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from contextlib import AsyncExitStack
from urllib.parse import quote

import pytest
from kit import gateway_process, proxying
from waiting import eventually, soon

import natsjobs
from natsjobs.http import bearer, owners

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until(page, expression, *, within=30.0):
    """Wait until this is true in the page."""
    await eventually(lambda: page.evaluate(f"Boolean({expression})"), within=within, what=expression, pause=0.1)


async def text(page, selector):
    """What is written there."""
    return await page.inner_text(selector)


def content(page):
    """The readable content that is drawn."""
    return page.evaluate("[...document.querySelectorAll('#panel-content .prose')].map(e => e.textContent).join('|')")


def words(first, last):
    """Text that shows at once when a piece of it is missing or doubled."""
    return [f"word{number} " for number in range(first, last)]


async def say(run, pieces):
    """Emit text as the AI SDK's chunks."""
    for piece in pieces:
        await run.emit({"type": "text-delta", "id": "t", "delta": piece})


async def drawn(page, pieces):
    """Wait until exactly this is drawn."""
    wanted = "".join(pieces)
    await eventually(lambda: _is(page, wanted), within=40, what=f"{len(wanted)} characters, exactly", pause=0.1)


async def _is(page, wanted):
    return await content(page) == wanted


async def test_a_job_is_watched_over_a_reload_and_a_killed_gateway_and_then_aborted(tab, natsjobs_server):
    """From the list to its end: nothing missing, nothing twice, and the worker hears of the abort."""
    namespace = f"t{uuid.uuid4().hex[:10]}"
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(gateway_process(natsjobs_server, namespace)) for _ in range(2)]
        first, second = await asyncio.gather(*starting)
        config = natsjobs.Config(namespace=namespace)
        jobs = await stack.enter_async_context(natsjobs.connect(natsjobs_server, config=config))
        proxy = await stack.enter_async_context(proxying(first.port))
        page = await tab()
        await page.goto(f"{proxy.url}/")
        async with jobs.start("conv-1", user_id="alice", model="some-model") as run:
            await say(run, words(0, 40))
            await page.click("#rows a.open >> text=conv-1")
            await drawn(page, words(0, 40))
            await say(run, words(40, 60))
            await drawn(page, words(0, 60))
            await page.reload()
            await say(run, words(60, 80))
            await drawn(page, words(0, 80))
            await page.click("#tab-events")
            assert await text(page, "#panel-events > p") == "80 events."
            await page.click("#tab-content")

            proxy.target = second.port
            await first.kill()
            await say(run, words(80, 120))
            await drawn(page, words(0, 120))
            await until(page, "document.querySelector('#link').dataset.state === 'open'")
            await until(page, "!document.querySelector('#job-notes [data-name=link]')")
            await eventually(lambda: _cursor_is(page, jobs, "conv-1"), what="the cursor of the last event")

            await page.keyboard.press("a")
            await page.click("#abort-no")
            assert run.status == "running"
            await page.keyboard.press("a")
            await page.click("#abort-yes")
            await soon(run.wait_aborted())
        await until(page, "document.querySelector('#job-status').innerText.includes('Aborted')")
        assert await page.is_hidden("#abort")
        await until(page, "document.querySelector('#job-notes').innerText.includes('owner confirmed')")
        await until(page, "document.querySelector('#rows .badge').innerText === 'Aborted'")
        assert await content(page) == "".join(words(0, 120))


async def _cursor_is(page, jobs, stream_id):
    state = await jobs.resume_state(stream_id)
    return await text(page, "#cursor") == state.cursor


async def test_the_list_is_searched_filtered_and_says_how_busy_jobs_are(tab, open_gateway, jobs):
    """Counts, ages, events, viewers; by keyboard."""
    for number in range(60):
        async with jobs.start(f"old-{number}", user_id="bob" if number % 2 else "carol"):
            pass
    with pytest.raises(RuntimeError):
        async with jobs.start("broken", user_id="dave"):
            raise RuntimeError("out of tokens")
    gate = await open_gateway(jobs)
    page = await tab()
    await page.goto(f"http://127.0.0.1:{gate.port}/")
    async with jobs.start("live", user_id="alice") as run, jobs.subscribe("live"):
        await say(run, words(0, 7))
        await until(page, "document.querySelectorAll('#rows tr').length === 50")
        await until(page, "document.querySelector('#range').innerText === '1\\u201350 of 62'")
        row = page.locator("#rows tr", has_text="live")
        await eventually(lambda: _cells(row, "Events", "7"), pause=0.1)
        await eventually(lambda: _cells(row, "Viewers", "1"), pause=0.1)
        await say(run, words(7, 400))
        await eventually(lambda: _busy(row), within=40, what="events per second", pause=0.1)
        await page.click("#older")
        await until(page, "document.querySelectorAll('#rows tr').length === 12")
        await page.keyboard.press("3")
        await until(page, "document.querySelectorAll('#rows tr').length === 1")
        assert "out of tokens" in await text(page, "#rows")
        await page.keyboard.press("0")
        await page.keyboard.press("/")
        await page.keyboard.type("CAROL old-2")
        await until(page, "document.querySelectorAll('#rows tr').length === 6")
        assert "q=CAROL" in page.url
        await page.reload()
        await until(page, "document.querySelectorAll('#rows tr').length === 6")
        await page.keyboard.press("/")
        await page.keyboard.type(" nothing")
        await until(page, "document.querySelector('#empty').innerText === 'No job matches.'")


async def _cells(row, label, wanted):
    return await row.locator(f"[data-label='{label}']").inner_text() == wanted


async def _busy(row):
    return await row.locator("[data-label='Events/s']").inner_text() not in {"", "\u2013", "0"}


async def test_the_keyboard_is_enough(tab, open_gateway, jobs):
    """Rows, job, tabs, dialogs; the focus is always to be seen and comes back to where it was."""
    async with jobs.start("one", user_id="alice") as run, jobs.start("two", user_id="alice"):
        await say(run, words(0, 3))
        gate = await open_gateway(jobs)
        page = await tab()
        await page.goto(f"http://127.0.0.1:{gate.port}/")
        await until(page, "document.querySelectorAll('#rows tr').length === 2")
        order = []
        for _ in range(12):
            await page.keyboard.press("Tab")
            order.append(await page.evaluate("document.activeElement.innerText.trim() || document.activeElement.id"))
            outlined = "getComputedStyle(document.activeElement.closest('td') ?? document.activeElement).outlineStyle"
            assert await page.evaluate(outlined) != "none", order[-1]
        assert order[0] == "Skip to the jobs"
        assert [name for name in order if name in {"search", "two", "one"}] == ["search", "two", "one"]
        await page.evaluate("document.activeElement.blur()")
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        assert await page.evaluate("document.activeElement.innerText") == "one"
        await page.keyboard.press("Enter")
        await drawn(page, words(0, 3))
        await page.keyboard.press("e")
        assert await page.is_visible("#panel-events li:nth-child(3)")
        await page.focus("#tab-events")
        await page.keyboard.press("ArrowRight")
        assert '"streamId": "one"' in await text(page, "#panel-record pre")
        await page.keyboard.press("a")
        assert await page.evaluate("document.activeElement.id") == "abort-no"
        await page.keyboard.press("Escape")
        await page.keyboard.press("?")
        await page.keyboard.press("Space")  # shortcuts off
        await page.keyboard.press("Escape")
        await page.keyboard.press("a")
        assert not await page.evaluate("document.querySelector('dialog[open]')")
        await page.keyboard.press("Escape")
        await until(page, "document.querySelector('#job').hidden")
        assert await page.evaluate("document.activeElement.innerText") == "one"
        assert run.status == "running"


async def test_a_token_is_asked_for_and_shows_ones_own_jobs_alone(tab, open_gateway, jobs):
    """A wrong one is told; the right one survives a reload and nothing else; an operator sees all."""
    identify = bearer({"token-of-alice": "alice", "token-of-ops": "ops"})
    gate = await open_gateway(jobs, authorize=owners(jobs, identify, operators={"ops"}))
    async with jobs.start("hers", user_id="alice") as run, jobs.start("his", user_id="bob"):
        await say(run, words(0, 3))
        page = await tab()
        await page.goto(f"http://127.0.0.1:{gate.port}/")
        await page.fill("#token", "wrong")
        await page.keyboard.press("Enter")
        await until(page, "document.querySelector('#token-why').innerText.includes('does not know')")
        await page.fill("#token", "token-of-alice")
        await page.click("#token-use")
        await until(page, "document.querySelector('#rows').innerText.includes('hers')")
        assert "his" not in await text(page, "#rows")
        await page.reload()
        await page.click("#rows a.open")
        await drawn(page, words(0, 3))
        assert await page.evaluate("localStorage.length") == 0
        await page.goto(f"http://127.0.0.1:{gate.port}/#/job/his")
        await until(page, "document.querySelector('#job-notes').innerText.includes('no such job')")
        await page.click("#open-token")
        await page.fill("#token", "token-of-ops")
        await page.click("#token-use")
        await until(page, "document.querySelectorAll('#rows tr').length === 2")
        await page.click("#open-token")
        await page.click("#token-forget")
        await until(page, "document.querySelectorAll('#rows tr').length === 0")
        assert await page.evaluate("sessionStorage.length") == 0


async def test_the_servers_fold_is_the_content_and_live_text_follows_it(tab, open_gateway, jobs):
    """What was folded is drawn once, although its events are read, too; after the end it is folded again."""
    step = {"id": "s", "type": "message_creation", "index": 0, "stepDetails": {"type": "message_creation"}}

    async def more(run, pieces):
        for piece in pieces:
            delta = {"id": "s", "delta": {"content": [{"type": "text", "text": piece}]}}
            await run.emit({"event": "on_message_delta", "data": delta})

    gate = await open_gateway(jobs)
    page = await tab()
    async with jobs.start("s", user_id="alice") as run:
        await run.emit({"event": "on_run_step", "data": step})
        await more(run, words(0, 20))
        await run.flush()
        await page.goto(f"http://127.0.0.1:{gate.port}/#/job/s")
        await eventually(lambda: _is_text(page, words(0, 20)))
        await more(run, words(20, 30))
        await eventually(lambda: _is_text(page, words(0, 30)))
        await run.complete({"final": "message"})
    await until(page, "document.querySelector('#job-status').innerText === 'Complete'")
    await eventually(lambda: _is_text(page, [*words(0, 30), '{\n  "final": "message"\n}']))


async def _is_text(page, pieces):
    return (await content(page)).replace("|", "") == "".join(pieces)


async def test_it_can_be_read_on_every_screen(tab, open_gateway, jobs):
    """Nothing sticks out sideways, texts stand out from what is behind them, and dark is dark."""
    gate = await open_gateway(jobs)
    name = "a-rather-long-conversation-id/" + "x" * 90
    async with jobs.start(name, user_id="somebody@a-long-domain.example", model="a-model") as run:
        await say(run, [*words(0, 300), "y" * 500])
        page = await tab()
        for width, scheme in itertools.product((1360, 800, 390), ("light", "dark")):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.emulate_media(color_scheme=scheme)
            await page.goto(f"http://127.0.0.1:{gate.port}/#/")
            await until(page, "document.querySelectorAll('#rows tr').length === 1")
            await check_readable(page, dark=scheme == "dark")
            await page.goto(f"http://127.0.0.1:{gate.port}/#/job/{quote(name, safe='')}")
            await drawn(page, [*words(0, 300), "y" * 500])
            await check_readable(page, dark=scheme == "dark")
            assert await page.is_visible("#abort")
            assert await page.is_visible("#list") == (width > 1000)
            await page.keyboard.press("e")
            await check_readable(page, dark=scheme == "dark")
            await page.keyboard.press("c")


CONTRASTS = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => rgb(colour).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const found = getComputedStyle(e).backgroundColor;
    if (rgb(found)[3] === 255) return found; } };
  const weak = [];
  const walker = document.createTreeWalker(document.querySelector("body"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility()) continue;
    if (e.closest(".unseen, .skip, noscript, dialog")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push([walker.currentNode.data.slice(0, 40), ratio]);
  }
  return weak;
}
"""


async def check_readable(page, *, dark):
    """Against WCAG 2 AA: 4.5 to 1."""
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert await page.evaluate(CONTRASTS) == []
    brightness = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert (max(await page.evaluate(brightness)) < 60) is dark
