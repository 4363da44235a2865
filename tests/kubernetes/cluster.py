"""A Kubernetes of its own on loopback: as much of the API as Snakemake's plugin asks for.

Each job's container is a process in an empty folder, which stands for the pod's own disk, with the
environment that the image would give it. Nothing is shared with other pods but what the network brings.
"""

import base64
import json
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: test
clusters: [{{name: test, cluster: {{server: "{url}"}}}}]
users: [{{name: test, user: {{token: none}}}}]
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
"""


class Cluster(ThreadingHTTPServer):
    """`folder` holds a folder a pod; `image` is the environment of every container. The first `fail` pods
    fail."""

    daemon_threads = True

    def __init__(self, folder: Path, image: dict[str, str]):
        super().__init__(("127.0.0.1", 0), Requests)
        self.folder = folder
        self.image = image
        self.lock = Lock()
        self.secrets: dict[str, dict[str, str]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen] = {}
        self.fail = 0
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(KUBECONFIG.format(url=f"http://127.0.0.1:{self.server_port}"))

    def start(self, job: dict[str, Any]) -> None:
        name, container = job["metadata"]["name"], self.container(job)
        disk = self.folder / name
        disk.mkdir()
        secrets = {
            each["name"]: self.secrets[key["name"]][key["key"]]
            for each in container.get("env", [])
            for key in [each["valueFrom"]["secretKeyRef"]]
        }
        command = [*container["command"], *container["args"]]
        if self.fail:
            self.fail, command = self.fail - 1, ["false"]
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=disk,
                env=self.image | secrets,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        with self.lock:
            self.jobs[name], self.pods[name] = job, process

    @staticmethod
    def container(job: dict[str, Any]) -> dict[str, Any]:
        """The one container of a job."""
        return job["spec"]["template"]["spec"]["containers"][0]

    def log(self, name: str) -> str:
        """What a pod printed."""
        return (self.folder / f"{name}.log").read_text()

    def state(self, name: str) -> dict[str, Any]:
        """The state of a pod's container."""
        status = self.pods[name].poll()
        return {"running": {}} if status is None else {"terminated": {"exitCode": status}}

    def stop(self) -> None:
        """End all pods."""
        for process in self.pods.values():
            process.kill()
            process.wait()


class Requests(BaseHTTPRequestHandler):
    """Answers by the last parts of the path: kind, name, and what of it."""

    protocol_version = "HTTP/1.1"
    server: Cluster

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._asked()[0] == "secrets":
            data = {key: base64.b64decode(value).decode() for key, value in body["data"].items()}
            self.server.secrets[body["metadata"]["name"]] = data
        else:
            self.server.start(body)
        self._answer(body, 201)

    def do_GET(self) -> None:
        kind, name, query = self._asked()
        if kind == "jobs":
            state = self.server.state(name).get("terminated")
            counted = "active" if state is None else "failed" if state["exitCode"] else "succeeded"
            self._answer({"metadata": {"name": name}, "status": {counted: 1}})
        elif name:
            self._answer(self.server.log(name))
        else:
            name = query["labelSelector"][0].removeprefix("job-name=")
            container = {"name": "snakemake", "state": self.server.state(name), "image": "", "imageID": ""}
            container |= {"ready": True, "restartCount": 0}
            pod = {"metadata": {"name": name}, "status": {"containerStatuses": [container]}}
            self._answer({"items": [pod] if name in self.server.pods else []})

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, name, _ = self._asked()
        if kind == "pods":
            self.server.pods[name].kill()
            shutil.rmtree(self.server.folder / name, ignore_errors=True)
        self._answer({})

    def log_message(self, *_) -> None:
        """Nothing on the test's stderr."""

    def _asked(self) -> tuple[str, str, dict[str, list[str]]]:
        """Kind and name of /api.../namespaces/NAMESPACE/KIND/NAME/..., and the query."""
        parts = urlsplit(self.path)
        words = [*parts.path.split("/namespaces/")[1].split("/")[1:], ""]
        return words[0], words[1], parse_qs(parts.query)

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
