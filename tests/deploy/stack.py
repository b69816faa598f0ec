"""The whole deployment as processes: nats-server with the files of ``deploy/nats``, gateways and a worker as the
manifests start them.

Owns the translation from a container to a process: the same command, variables, users and files, with addresses, paths
and ports of this machine in place of the cluster's. Servers come from ``compose.yaml``, gateways, worker and the setup
Job from the rendered Kubernetes manifests. Everything is stopped by its process id.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import trustme
import yaml
from listening import free_port
from manifests import DEPLOY, pod_template, resources

from natsjobs import embedded

NODES = ("nats1", "nats2", "nats3")
OVERLAY = "k8s/overlays/existing-nats"
PASSWORDS = {"gateway": "try-gateway", "worker": "try-worker", "setup": "try-setup"}
USERS = {"alice": "a-token-of-alice"}


class Process:
    """One container as a process: started, told to stop as its manifest says, started again."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], log: Path, stop: str, grace: float) -> None:
        self.name, self.grace = name, grace
        self._argv, self._env, self._log, self._stop = argv, env, log, signal.Signals[stop]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; it is ready later."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env={**_plain_environment(), **self._env}, stdout=log, stderr=log
            )

    async def stop(self) -> int:
        """Stop in good order; it must be gone within the grace that its manifest gives. The exit status."""
        assert self._process is not None
        self._process.send_signal(self._stop)
        async with asyncio.timeout(self.grace):
            while (status := self._process.poll()) is None:
                await asyncio.sleep(0.05)
        self._process = None
        return status

    def kill(self) -> None:
        """End it if it is still there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        """What it said."""
        return self._log.read_text()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("NATS", "GRACE", "ALIVE"))}


class Stack:
    """Three servers, two gateways, a worker and the setup Job, below ``folder`` and on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client = {node: free_port() for node in NODES}
        self._route = {node: free_port() for node in NODES}
        self.monitor = {node: free_port() for node in NODES}
        self.http = [free_port(), free_port()]
        self.nats_url = ",".join(f"tls://localhost:{port}" for port in self._client.values())
        self._write_files()
        self.nats = {node: self._nats(node) for node in NODES}
        self.setup = self._of_pod("setup", "k8s/setup", "natsjobs-setup", "setup")
        gateway = "natsjobs-gateway"
        self.gateways = [self._of_pod(f"gateway{n}", OVERLAY, gateway, "gateway", self.http[n]) for n in (0, 1)]
        self.worker = self._of_pod("worker", "k8s/overlays/worker-example", "natsjobs-worker", "worker")

    @property
    def everything(self) -> list[Process]:
        """All processes."""
        return [*self.nats.values(), self.setup, *self.gateways, self.worker]

    @property
    def ca(self) -> Path:
        """The CA of the servers."""
        return self._path("/etc/natsjobs/tls/ca.crt")

    def _path(self, inside: str) -> Path:
        return self._folder / inside.lstrip("/")

    def _write_files(self) -> None:
        """What volumes, secrets and config maps would hold."""
        shutil.copytree(DEPLOY / "nats", self._path("/etc/nats"))
        cluster = self._path("/etc/nats/cluster.conf")
        assert '# include "tls.conf"' in cluster.read_text()
        cluster.write_text(cluster.read_text().replace('# include "tls.conf"', 'include "tls.conf"'))
        authority = trustme.CA()
        served = authority.issue_cert("localhost")
        served.private_key_pem.write_to_path(str(self._path("/etc/nats/tls.key")))
        served.cert_chain_pems[0].write_to_path(str(self._path("/etc/nats/tls.crt")))
        for folder in (
            "/etc/natsjobs/tls",
            "/etc/natsjobs/tokens",
            "/opt/worker",
            "/run/worker",
            *(f"/{n}" for n in NODES),
        ):
            self._path(folder).mkdir(parents=True)
        authority.cert_pem.write_to_path(str(self.ca))
        self._path("/etc/natsjobs/tokens/tokens").write_text("".join(f"{u} {t}\n" for u, t in USERS.items()))
        program = next(one for one in resources("k8s/overlays/worker-example") if one["kind"] == "ConfigMap")
        for name, text in program["data"].items():
            self._path(f"/opt/worker/{name}").write_text(text)

    # -- from compose.yaml

    def _nats(self, node: str) -> Process:
        service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"][node]
        here = {
            "NATS_LISTEN": f"127.0.0.1:{self._client[node]}",
            "NATS_MONITOR": f"127.0.0.1:{self.monitor[node]}",
            "NATS_STORE": str(self._path(node)),
            "NATS_CLUSTER_LISTEN": f"127.0.0.1:{self._route[node]}",
            "NATS_TLS_CERT": str(self._path("/etc/nats/tls.crt")),
            "NATS_TLS_KEY": str(self._path("/etc/nats/tls.key")),
        }
        env = {**service["environment"], **here}
        for number, other in enumerate(NODES, 1):
            route = env[f"NATS_ROUTE_{number}"]
            assert route.endswith(f"@{other}:6222")
            env[f"NATS_ROUTE_{number}"] = route.replace(f"{other}:6222", f"127.0.0.1:{self._route[other]}")
        argv = [
            str(embedded.find_binary()),
            *(arg.replace("/etc/", f"{self._path('/etc')}/") for arg in service["command"]),
        ]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        return Process(node, argv, env, self._folder / f"{node}.log", service["stop_signal"], grace)

    # -- from the Kubernetes manifests

    def _of_pod(self, name: str, folder: str, resource: str, user: str, port: int = 0) -> Process:
        found = next(
            one
            for one in resources(folder)
            if one["kind"] in {"Deployment", "Job"} and one["metadata"]["name"] == resource
        )
        template = pod_template(found)
        assert template is not None
        container = template["spec"]["containers"][0]
        command = container.get("command", ["natsjobs"])
        argv = {"natsjobs": [sys.executable, "-m", "natsjobs"], "python": [sys.executable]}[command[0]]
        argv = [*argv, *(self._here(arg, port) for arg in (*command[1:], *container.get("args", [])))]
        env = {**self._config_map(), **{one["name"]: self._here(one["value"], port) for one in container["env"]}}
        env["NATS_URL"] = self.nats_url
        env |= {"NATS_USER": user, "NATS_PASSWORD": PASSWORDS[user]}  # in place of the creds file, as the guide says
        del env["NATS_CREDS"]
        grace = float(template["spec"].get("terminationGracePeriodSeconds", 30))
        return Process(name, argv, env, self._folder / f"{name}.log", "SIGTERM", grace)

    @staticmethod
    def _config_map() -> dict[str, str]:
        found = next(one for one in resources(OVERLAY) if one["kind"] == "ConfigMap")
        return dict(found["data"])

    def _here(self, text: str, port: int) -> str:
        if text.startswith(("/etc/", "/opt/", "/run/")):
            return str(self._path(text))
        return {"0.0.0.0": "127.0.0.1", "8080": str(port)}.get(text, text)
