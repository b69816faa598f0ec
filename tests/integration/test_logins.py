"""Servers that want to know who one is: password, token, nkey, creds file, TLS; and that nobody else learns it.

Each way is tried through ``natsjobs.connect``, through a connection that was given, and through the command line, with
the right secrets and with wrong ones; and all texts that come of it are searched for the secrets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import login_kit
import nats
import pytest
from jetstream_kit import Server, config, quiet, server
from login_kit import WAYS, Login
from nats.aio.client import RawCredentials
from waiting import check_whole, eventually, read_all, soon

import natsjobs
from natsjobs import ConfigError, NatsJobsError, UnavailableError
from natsjobs.cli.login import VARIABLES
from natsjobs.cli.options import Options
from natsjobs.jetstream.connecting import Dialer


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Login:
    """One way to log in."""
    return WAYS[request.param](tmp_path)


@pytest.fixture
def asking(way: Login, tmp_path: Path) -> Iterator[Server]:
    """A server that wants it."""
    with server(tmp_path, way.server) as running:
        running.url = running.url.replace("nats://", f"{way.scheme}://")
        yield running


async def _works(jobs: natsjobs.JobManager, name: str = "s") -> None:
    async with jobs.start(name, user_id="u") as run:
        await run.emit("x")
    check_whole(await read_all(jobs.subscribe, name), ["x"])


async def _refused(url: str, **options: Any) -> NatsJobsError:
    started = time.monotonic()
    with pytest.raises(NatsJobsError) as failed:
        await soon(natsjobs.connect(url, config=config(), **options).__aenter__())
    assert time.monotonic() - started < 15
    assert "\n" not in str(failed.value)
    return failed.value


# -- getting in ---------------------------------------------------------------------------------------------------


async def test_whoever_has_the_right_secrets_gets_in_and_comes_back(way: Login, asking: Server) -> None:
    """By ``natsjobs.connect``; and again after the server was away, for which the secrets are needed once more."""
    async with natsjobs.connect(asking.url, config=config(), **way.right) as jobs:
        await _works(jobs)
        before = jobs.store.replica.context.link.nc.stats["reconnects"]  # type: ignore[attr-defined]
        asking.stop()
        asking.start()
        await eventually(lambda: jobs.store.replica.context.link.nc.stats["reconnects"] > before)  # type: ignore[attr-defined]
        await _works(jobs, "again")


async def test_a_given_connection_may_have_logged_in_in_any_way(way: Login, asking: Server) -> None:
    """The library asks for nothing more."""
    nc = await nats.connect(asking.url, error_cb=quiet, **way.right)
    async with natsjobs.connect(nc=nc, config=config()) as jobs:
        await _works(jobs)
    await nc.close()


async def test_without_or_with_wrong_secrets_one_line_says_so_in_time(way: Login, asking: Server) -> None:
    """Not a time-out, and not a retry for ever."""
    for options in ({}, way.wrong):
        error = await _refused(asking.url, **options)
        assert isinstance(error, UnavailableError)
        assert way.refusal in str(error)


def _cli(url: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NATSJOBS_", *VARIABLES))}
    env |= {"NATS_URL": url, "NATSJOBS_TIMING_REQUEST": "4", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "natsjobs", *arguments],
        env=env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_command_line_takes_options_and_the_variables_of_the_nats_command(way: Login, asking: Server) -> None:
    """Both ways get in; wrong ones are one line on stderr and status 3, without the secret."""
    for arguments, variables in ((way.arguments, {}), ([], way.variables)):
        status, out, err = _cli(asking.url, *arguments, "ls", **variables)
        assert (status, err) == (0, "no jobs\n"), err
    for debug in ([], ["--debug"]):
        status, out, err = _cli(asking.url, *debug, "ls", **way.wrong_variables)
        assert status == 3
        assert way.refusal in err
        assert debug or err.count("\n") == 1, err
        for secret in way.secrets:
            assert secret not in out + err


async def test_a_url_may_hold_user_or_token_for_every_server_that_is_learned_later(tmp_path: Path) -> None:
    """Escaped as in every URL. nats-py forgets them for servers that it was not given, so they become options."""
    for make in (login_kit.password, login_kit.token):
        way = make(tmp_path)
        with server(tmp_path, way.server) as asking:
            url = asking.url.replace("://", f"://{way.user_part}")
            async with natsjobs.connect(url, config=config()) as jobs:
                await _works(jobs)
                assert not jobs.store.replica.context.link.nc.connected_url.username  # type: ignore[attr-defined]
    dialer = Dialer("nats://a:x1@n1,nats://b:x2@n2", {})
    assert dialer._servers == ["nats://a:x1@n1", "nats://b:x2@n2"]  # two users: each keeps its own


async def test_an_option_stands_above_the_url(tmp_path: Path) -> None:
    """As in nats-py."""
    way = login_kit.password(tmp_path)
    with server(tmp_path, way.server) as asking:
        async with natsjobs.connect(asking.url.replace("://", "://app:wrong@"), config=config(), **way.right) as jobs:
            await _works(jobs)


# -- files that are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "not a creds file\n", "-----BEGIN NATS USER JWT-----\nabc\n", "\x00\xff"])
async def test_a_file_without_credentials_is_named_and_never_a_hang(tmp_path: Path, text: str) -> None:
    """nats-py reads such a file for ever, with the event loop; here it is a ConfigError that names the option."""
    path = tmp_path / "bad.creds"
    path.write_bytes(text.encode("latin-1"))
    for option in ("user_credentials", "nkeys_seed"):
        error = await _refused("nats://127.0.0.1:1", **{option: str(path)})
        assert isinstance(error, ConfigError)
        assert error.field == option
    missing = await _refused("nats://127.0.0.1:1", user_credentials=str(tmp_path / "none"))
    assert isinstance(missing, ConfigError)
    assert "No such file" in str(missing)


async def test_credentials_come_in_all_forms_of_nats_py(tmp_path: Path) -> None:
    """A path, the content, or a file for each half."""
    way = login_kit.creds(tmp_path)
    text = way.files[0].read_text()
    lines = [line for line in text.splitlines() if line and "-----" not in line]
    halves = (tmp_path / "jwt", tmp_path / "seed")
    for path, line in zip(halves, lines, strict=True):
        path.write_text(line)
    with server(tmp_path, way.server) as asking:
        for creds in (way.files[0], RawCredentials(text), tuple(map(str, halves))):
            async with natsjobs.connect(asking.url, config=config(), user_credentials=creds) as jobs:
                await _works(jobs)


async def test_a_creds_file_may_be_replaced_while_we_run_and_half_written(tmp_path: Path) -> None:
    """It is read at every reconnect; a half of it fails that attempt, and nothing hangs."""
    way = login_kit.creds(tmp_path)
    path, text = way.files[0], way.files[0].read_text()
    with server(tmp_path, way.server) as asking:
        async with natsjobs.connect(asking.url, config=config(), **way.right) as jobs:
            path.write_text(text[: len(text) // 3])
            asking.stop()
            asking.start()
            nc = jobs.store.replica.context.link.nc  # type: ignore[attr-defined]
            await eventually(lambda: isinstance(nc.last_error, nats.errors.InvalidUserCredentialsError))
            await asyncio.sleep(0)  # the loop turns
            path.write_text(text)
            await eventually(lambda: jobs.store.replica.context.link.nc.is_connected)  # type: ignore[attr-defined]
            await _works(jobs)


# -- nothing is told ----------------------------------------------------------------------------------------------


class Texts:
    """Everything that somebody could read: log lines with tracebacks, errors in every form, and reprs."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def objects(self, *found: object) -> None:
        """What they show of themselves, and what their public attributes do."""
        for one in found:
            self.all += [repr(one), str(one)]
            self.all += [repr(value) for name, value in getattr(one, "__dict__", {}).items() if name[0] != "_"]

    def error(self, error: BaseException) -> None:
        """As a person, a log and another process get it."""
        self.all += ["".join(traceback.format_exception(error)), repr(error), repr(vars(error)), repr(error.args)]
        self.all.append(repr(pickle.dumps(error)))

    def check(self, secrets: list[str], log: pytest.LogCaptureFixture) -> None:
        """None of them is anywhere."""
        lines = [logging.Formatter().format(record) for record in log.records]
        assert lines
        for text in (*self.all, *lines):
            for secret in secrets:
                assert secret not in text, text


async def test_no_secret_is_in_logs_errors_or_reprs(
    way: Login, asking: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """While it works, while the server is away, when it is refused, in options and in URLs, with all logs on."""
    caplog.set_level(logging.DEBUG)
    texts = Texts()
    url = asking.url.replace("://", f"://{way.user_part}")
    for address, options in ((asking.url, way.right), (url, way.right if not way.user_part else {})):
        opening = natsjobs.connect(address, config=config(request=1.0), **options)
        async with opening as jobs, jobs.start("s", user_id="u") as run:
            link = jobs.store.replica.context.link  # type: ignore[attr-defined]
            texts.objects(opening, jobs, jobs.store, jobs.transport, run, link, link.nc.connected_url)
            texts.all.append(repr(link.nc))
            asking.stop()
            try:
                await jobs.list_jobs()
            except NatsJobsError as error:
                texts.error(error)
            asking.start()
            await eventually(lambda link=link: link.nc.is_connected)
            await run.emit("x")
    nc = await nats.connect(asking.url, error_cb=quiet, **way.right)
    async with natsjobs.connect(nc=nc, config=config()) as jobs:
        texts.objects(jobs, jobs.store, jobs.transport)
    await nc.close()
    texts.error(await _refused(asking.url, **way.wrong))
    asking.stop()
    texts.error(await _refused(url, **way.right))
    texts.objects(Dialer(url, way.right), Options(server=url))
    texts.check(way.secrets, caplog)


@pytest.mark.parametrize(
    "url",
    [
        "nats://app:se-cret@127.0.0.1:not-a-port",
        "nats://app:se-cret@[::1",
        "ftp://app:se-cret@127.0.0.1:1",
        "nats://app:se-cret/x@127.0.0.1:1",
        "nats://se-cret@nowhere.invalid:1",
        "nats://a:se-cret@127.0.0.1:1,nats://b:other@127.0.0.1:bad",
        "nats://a:se-cret@127.0.0.1:1,ws://a:se-cret@127.0.0.1:1",
    ],
)
async def test_a_url_that_cannot_be_one_is_an_error_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What urllib, the resolver and nats-py say about it included."""
    caplog.set_level(logging.DEBUG)
    texts = Texts()
    with pytest.raises(NatsJobsError) as failed:
        await soon(natsjobs.connect(url, config=config(request=0.5)).__aenter__())
    texts.error(failed.value)
    if any(part in url for part in ("not-a-port", "[::1", "ftp:", ":bad")):
        assert isinstance(failed.value, ConfigError)
        assert "is no address" in str(failed.value)
    logging.getLogger("natsjobs").debug("so that there is a line")
    texts.check(["se-cret", "se-cre", "other"], caplog)


async def test_a_secret_in_the_place_of_a_path_is_not_repeated() -> None:
    """People give the seed where its file is wanted; the error says so without showing it."""
    seed, _ = login_kit.new_key("U")
    creds = login_kit.new_creds(login_kit.new_key("A"))
    texts = Texts()
    for option, value in (("nkeys_seed", seed), ("user_credentials", creds), ("user_credentials", seed)):
        error = await _refused("nats://127.0.0.1:1", **{option: value})
        assert isinstance(error, ConfigError)
        assert "path of a file" in str(error)
        texts.error(error)
    broken = seed[:-4] + "AAAA"[:4] + "?"
    texts.error(await _refused("nats://127.0.0.1:1", nkeys_seed_str=broken))
    for text in texts.all:
        assert seed not in text
        assert seed[:20] not in text
        assert creds.splitlines()[1] not in text
