"""An example worker: takes prompts from NATS, answers each as a job, and leaves nothing half done when told to stop.

A prompt is a request on ``app.prompts``, for instance
``nats req app.prompts '{"chat": "c1", "user": "alice", "prompt": "tell me"}'``. It is answered at once with the
generation; the answer itself is read at a gateway. Replace ``answer`` by a call of your model.

On SIGTERM (a rolling update, a node that is drained) it takes no more prompts, gives the open runs ``GRACE`` seconds,
and ends the rest with a terminal record that says so: error, shutdown. Environment: ``NATS_URL``, those of
``CREDENTIALS``, ``NATS_CA``, ``NATS_INBOX_PREFIX``, ``NATSJOBS_*``, ``GRACE``, ``METRICS_PORT`` (Prometheus), and
``ALIVE``: a file that is touched while the event loop turns, for the probes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from pathlib import Path
from typing import Any

import nats
import prometheus_client
from nats.aio.msg import Msg

import natsjobs
import natsjobs.telemetry

SUBJECT, QUEUE = "app.prompts", "workers"
CREDENTIALS = {
    "NATS_CREDS": "user_credentials",  # a file
    "NATS_NKEY": "nkeys_seed",  # a file
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
}


async def answer(run: natsjobs.JobRun, prompt: str) -> None:
    """A model that says the prompt again, ten times, word by word."""
    for word in (prompt + " ").split(" ") * 10:
        await asyncio.sleep(0.05)
        await run.emit({"text": word + " "})


def connection() -> dict[str, Any]:
    """Options of the connection, from the environment."""
    env = os.environ
    options: dict[str, Any] = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.5}
    for name, option in CREDENTIALS.items():
        if value := env.get(name):
            options[option] = value
    if ca := env.get("NATS_CA"):
        options["tls"] = ssl.create_default_context(cafile=ca)
    if prefix := env.get("NATS_INBOX_PREFIX"):
        options["inbox_prefix"] = prefix.encode()
    return options


async def beat(alive: Path) -> None:
    """Touch the file as long as the event loop turns and the process is not stuck."""
    while True:
        alive.touch()
        await asyncio.sleep(5)


async def main() -> None:
    """Work until SIGTERM, or until the connection is closed for good: Kubernetes starts a new worker then."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def closed() -> None:
        stop.set()

    if port := os.environ.get("METRICS_PORT"):
        natsjobs.telemetry.prometheus()
        prometheus_client.start_http_server(int(port))
    url = os.environ.get("NATS_URL", "nats://localhost:4222")
    nc = await nats.connect(url.split(","), closed_cb=closed, **connection())
    async with natsjobs.connect(nc=nc) as jobs:

        async def take(message: Msg) -> None:
            request = json.loads(message.data)
            job = await jobs.spawn(request["chat"], lambda run: answer(run, request["prompt"]), user_id=request["user"])
            await message.respond(json.dumps({"generation": job.generation}).encode())

        prompts = await nc.subscribe(SUBJECT, queue=QUEUE, cb=take)
        print("working", flush=True)
        beating = asyncio.create_task(beat(Path(os.environ.get("ALIVE", os.devnull))))
        await stop.wait()
        if not nc.is_closed:
            await prompts.drain()
        ended = await jobs.drain(float(os.environ.get("GRACE", "25")))
        print(f"{ended} runs were cut short", flush=True)
        beating.cancel()
    if not nc.is_closed:
        await nc.drain()


if __name__ == "__main__":
    asyncio.run(main())
