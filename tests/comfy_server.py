"""A real ComfyUI in a process of its own, in a folder of its own, with this pack in it.

    with ComfyServer(folder, comfyui=Path("…/ComfyUI")) as comfy:
        result = comfy.run(prompt)        # the history entry; raises with ComfyUI's own words when the prompt fails
        result.executed, result.cached    # ids of the nodes that ran, and of those that did not have to

`python -m tests.comfy_server` starts one by hand, prints its address and keeps it until Ctrl-C; `--help` for more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tests import warm_start

ROOT = Path(__file__).resolve().parents[1]
HELPER_NODES = ROOT / "tests/e2e/helper_nodes"
PACK_NAME = "differential-lora"

Prompt = dict[str, dict[str, Any]]


class ComfyError(Exception):
    """ComfyUI did not do what it was asked to."""


class PromptRejected(ComfyError):
    """`POST /prompt` answered with an error: the prompt never ran. `.body` is the whole answer."""

    def __init__(self, message: str, body: dict[str, Any]):
        super().__init__(message)
        self.body = body


class NodeFailed(ComfyError):
    """A node raised. `.message` is its exception's text alone, `.node_id` the node, `.details` all ComfyUI says."""

    def __init__(self, details: dict[str, Any]):
        self.details = details
        self.message: str = details["exception_message"].strip()
        self.node_id: str = details["node_id"]
        super().__init__(f"node {self.node_id} ({details['node_type']}): {self.message}")


class Interrupted(ComfyError):
    """The prompt was cancelled while it ran."""


class Finished(dict[str, Any]):
    """A prompt's history entry, and what the websocket said while it ran.

    executed: ids of the nodes that ran, in order. Nodes made by expansion have ids such as "7.0.0.3".
    cached:   ids of the nodes whose earlier results were taken.
    messages: everything else, as (type, data).
    seconds:  from the prompt's start to its end, by ComfyUI's clock.
    """

    executed: list[str]
    cached: list[str]
    messages: list[tuple[str, dict[str, Any]]]
    seconds: float

    def output(self, node_id: str) -> dict[str, Any]:
        """What a node showed: its `ui` output."""
        return self["outputs"].get(node_id, {})


class ComfyServer:
    """See the module. Everything it writes is below `base`; the log is in `base/comfyui.log`."""

    def __init__(
        self,
        base: Path,
        comfyui: Path,
        flags: Sequence[str] = (),
        wrapper: Path | None = None,
        python: str | Path = sys.executable,
        helper_nodes: bool = True,
        pack: Path | None = ROOT,
        timeout: float = 300,
        port: int = 0,
        more_packs: Mapping[str, Path] | None = None,
        warm: bool = False,
    ):
        self.base = base.resolve()
        self.comfyui = comfyui
        self.flags = list(flags)
        self.wrapper = wrapper
        self.python = python
        self.timeout = timeout
        # Only in the tests' own Python are its packages imported already.
        self.warm = warm and warm_start.AVAILABLE and str(python) == sys.executable
        self.packs = {PACK_NAME: pack, "helper_nodes": HELPER_NODES if helper_nodes else None, "wrapper": wrapper}
        self.packs |= more_packs or {}
        self.client_id = uuid.uuid4().hex
        self.port = port  # 0: any that is free
        self.log_file = self.base / "comfyui.log"
        self._process: subprocess.Popen[bytes] | warm_start.Forked | None = None
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._own: set[str] = set()  # the prompts whose messages come to this websocket
        self._ended: set[str] = set()  # those of them that have ended
        self._socket_closed = threading.Event()
        self._listening = threading.Event()

    # Start and stop

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        for folder in ("custom_nodes", "input", "output", "user", "path"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("diffusion_models", "vae", "loras"):
            self.models(folder).mkdir(parents=True, exist_ok=True)
        for name, source in self.packs.items():
            if source:
                _link(source.resolve(), self.base / "custom_nodes" / name)
        self.port = self.port or _free_port()
        database = (self.base / "user/comfyui.db").as_posix()
        script = self.comfyui / "main.py"
        arguments = [
            "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base), "--database-url", f"sqlite:///{database}",
            "--disable-auto-launch", "--disable-api-nodes", *self.flags,
        ]  # fmt: skip
        if self.warm:
            self._process = warm_start.start(script, arguments, self.base, self._environment(), self.log_file)
        else:
            with self.log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [str(self.python), str(script), *arguments], cwd=self.base, env=self._environment(),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=os.name != "nt",
                )  # fmt: skip
        # A server that is started again is listened to again.
        self._listening.clear()
        self._socket_closed.clear()
        try:
            self._until(self._answers, self.timeout, "ComfyUI does not answer")
            threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True).start()
            if not self._listening.wait(30):
                raise ComfyError("ComfyUI's websocket does not open")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and whatever it started. Stopping twice does no harm."""
        process, self._process = self._process, None
        if process is None:
            return
        if os.name == "nt":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        self._socket_closed.wait(5)

    def _environment(self) -> dict[str, str]:
        # PYTHONPATH is replaced: the pack's own folder on it would give ComfyUI our `nodes` in place of its own.
        environment = {**os.environ, "PYTHONPATH": str(self.base / "path"), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
        # ComfyUI 0.33 and WanVideoWrapper import torchaudio at their top and call it for sound only.
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torchaudio') is None)"
        if subprocess.run([str(self.python), "-c", look], env=environment).returncode:
            stand_in = self.base / "path/torchaudio"
            stand_in.mkdir(exist_ok=True)
            for module in ("__init__", "functional", "transforms"):
                (stand_in / f"{module}.py").write_text('"""Stands in for a package that is not installed."""\n')
        return environment

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.get("/system_stats"))
        return False

    def _until(self, done: Callable[[], bool], timeout: float, complaint: str, every: float = 0.05) -> None:
        end = time.monotonic() + timeout
        while not done():
            if not self.is_running:
                raise ComfyError(f"ComfyUI has ended. The end of its log:\n{self.log[-3000:]}")
            if time.monotonic() > end:
                raise ComfyError(f"{complaint} after {timeout:.0f} s. The end of its log:\n{self.log[-3000:]}")
            time.sleep(every)

    # What is where

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What ComfyUI has printed so far."""
        return self.log_file.read_text("utf-8", "replace")

    def models(self, kind: str) -> Path:
        """The folder for models of a kind: diffusion_models, vae, loras, …"""
        return self.base / "models" / kind

    # Prompts

    def run(self, prompt: Prompt, timeout: float = 300) -> Finished:
        """Queue a prompt in API format and wait for it. Raises PromptRejected, NodeFailed or Interrupted."""
        return self.wait(self.queue(prompt), timeout)

    def queue(self, prompt: Prompt, **extra_data: Any) -> str:
        """Queue a prompt and return its id. extra_data: such as extra_pnginfo, what ComfyUI writes into pictures."""
        wish = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data}
        status, body = self._request("/prompt", wish)
        answer = json.loads(body)
        if status != 200 or answer.get("node_errors"):
            raise PromptRejected(_rejection(answer), answer)
        self._own.add(answer["prompt_id"])
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> Finished:
        """Wait for a queued prompt, whoever queued it. (Only of its own does it know what ran and what was cached.)"""
        complaint = f"prompt {prompt_id} is not done"
        if prompt_id in self._own:
            # The last message comes just after the entry in the history.
            self._until(lambda: prompt_id in self._ended, timeout, complaint, every=0.005)
        else:
            self._until(lambda: bool(self.get(f"/history/{prompt_id}")), timeout, complaint)
        result = Finished(self.get(f"/history/{prompt_id}")[prompt_id])
        events = {kind: data for kind, data in result["status"]["messages"]}
        result.messages = [message for message in list(self._messages) if message[1].get("prompt_id") == prompt_id]
        started = [data["node"] for kind, data in result.messages if kind == "executing" and data["node"]]
        result.executed = list(dict.fromkeys(started))
        result.cached = [node for kind, data in result.messages if kind == "execution_cached" for node in data["nodes"]]
        times = [data["timestamp"] for data in events.values() if "timestamp" in data]
        result.seconds = (max(times) - min(times)) / 1000 if times else 0.0
        if "execution_interrupted" in events:
            raise Interrupted(
                f"prompt {prompt_id} was interrupted in node {events['execution_interrupted']['node_id']}"
            )
        if "execution_error" in events:
            raise NodeFailed(events["execution_error"])
        return result

    def wait_for_node(self, prompt_id: str, node_id: str, timeout: float = 60) -> None:
        """Wait until a node of a prompt has begun to run: the moment to cancel it, or to change a file under it."""

        def begun() -> bool:
            return any(
                kind == "executing" and data.get("prompt_id") == prompt_id and data["node"] == node_id
                for kind, data in list(self._messages)
            )

        self._until(begun, timeout, f"node {node_id} of prompt {prompt_id} has not begun")

    def steps(self, prompt_id: str, node_id: str) -> tuple[int, int]:
        """How far a node's progress bar is, and its length; (0, 0) before it begins."""
        for kind, data in reversed(list(self._messages)):
            if kind == "progress" and data.get("prompt_id") == prompt_id and data["node"] == node_id:
                return int(data["value"]), int(data["max"])
        return 0, 0

    def wait_for_step(self, prompt_id: str, node_id: str, step: int, timeout: float = 120) -> None:
        """Wait until a node's progress bar has reached a step."""
        complaint = f"node {node_id} of prompt {prompt_id} has not reached step {step}"
        self._until(lambda: self.steps(prompt_id, node_id)[0] >= step, timeout, complaint)

    def told(self, node_id: str) -> list[dict[str, Any]]:
        """What a node, under the id that the page knows it by, has shown up to now, also while it runs."""
        messages = [data for kind, data in list(self._messages) if kind == "executed"]
        return [data["output"] for data in messages if data.get("display_node") == node_id and data.get("output")]

    def interrupt(self) -> None:
        """Cancel what is running."""
        self._request("/interrupt", {})

    def running(self) -> list[str]:
        """Ids of the prompts being run and waiting."""
        queue = self.get("/queue")
        return [entry[1] for entry in queue["queue_running"] + queue["queue_pending"]]

    def forget(self) -> None:
        """Drop every cached result and loaded model. The next prompt starts from nothing."""
        probe = {
            "text": {"class_type": "PrimitiveString", "inputs": {"value": "forget"}},
            "show": {"class_type": "PreviewAny", "inputs": {"source": ["text", 0]}},
        }
        self.run(probe)
        self._request("/free", {"unload_models": True, "free_memory": True})
        # The queue's worker does it between two prompts: a prompt sent at once could still be served from the cache.
        for _ in range(50):
            if self.run(probe).executed:
                return
            time.sleep(0.1)
        raise ComfyError("the caches still hold what they held, after POST /free and 50 prompts")

    def forget_runs(self) -> None:
        """Clear the history that open pages fetch at each change of the queue."""
        self._request("/history", {"clear": True})

    def forget_clips(self) -> None:
        """Remove every finished clip of a sweep: the next sweep renders all of its strengths."""
        shutil.rmtree(self.base / "user/__differential_lora/sweeps", ignore_errors=True)

    # Everything else that is asked of a server

    def object_info(self, node_class: str | None = None) -> dict[str, Any]:
        """The description of one node class, or of all by name."""
        if node_class is None:
            return self.get("/object_info")
        return self.get(f"/object_info/{urllib.parse.quote(node_class)}")[node_class]

    def view(self, filename: str, type: str = "output", subfolder: str = "") -> bytes:
        """A file that a node says it has written: `comfy.view(**result.output("9")["images"][0])`."""
        query = urllib.parse.urlencode({"filename": filename, "type": type, "subfolder": subfolder})
        status, body = self._request(f"/view?{query}")
        if status != 200:
            raise ComfyError(f"/view?{query} answers {status}")
        return body

    def get(self, path: str) -> Any:
        """The JSON that a GET answers with."""
        status, body = self._request(path)
        if status != 200:
            raise ComfyError(f"GET {path} answers {status}: {body[:500].decode('utf-8', 'replace')}")
        return json.loads(body)

    def _request(self, path: str, data: object = None) -> tuple[int, bytes]:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    async def _listen(self) -> None:
        """Collect the websocket's messages until the server ends. (Binary ones, previews of images, are left out.)"""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={self.client_id}", max_msg_size=0) as socket,
            ):
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        kind, data = event["type"], event.get("data") or {}
                        self._messages.append((kind, data))
                        if kind == "executing" and data.get("node") is None and "prompt_id" in data:
                            self._ended.add(data["prompt_id"])
                        # The first message is the server's greeting: from here on nothing is missed.
                        self._listening.set()
        except aiohttp.ClientError as error:
            if self._process is not None:
                self._messages.append(("socket_error", {"error": str(error)}))
        finally:
            self._socket_closed.set()


def _rejection(answer: dict[str, Any]) -> str:
    error = answer.get("error") or {}
    lines = [f"{error.get('message', 'prompt rejected')} {error.get('details', '')}".strip()]
    for node_id, node in (answer.get("node_errors") or {}).items():
        for problem in node["errors"]:
            lines.append(f"node {node_id} ({node['class_type']}): {problem['message']}: {problem['details']}")
    return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link(source: Path, target: Path) -> None:
    if target.is_symlink() or target.exists():
        return
    if os.name == "nt":
        # A junction, because a symbolic link needs a right that most users lack.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(target), str(source)], check=True, capture_output=True)
    else:
        target.symlink_to(source, target_is_directory=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start ComfyUI with this pack, small models and test nodes.")
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_DIR"), help="default: COMFYUI_DIR")
    parser.add_argument("--python", default=os.environ.get("COMFYUI_PYTHON", sys.executable))
    parser.add_argument("--wrapper", type=Path, default=os.environ.get("WANVIDEO_WRAPPER_DIR"))
    parser.add_argument("--base", type=Path, help="its folder; default: a new temporary one, removed at the end")
    options, flags = parser.parse_known_args()
    if not options.comfyui:
        parser.error("say where ComfyUI is: --comfyui FOLDER, or COMFYUI_DIR")
    from tests import small_models

    base = options.base or Path(tempfile.mkdtemp(prefix="comfyui-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        wrapper = Path(options.wrapper) if options.wrapper else None
        with ComfyServer(base, Path(options.comfyui), flags, wrapper, options.python) as comfy:
            small_models.write_all(comfy.base / "models")
            print(f"{comfy.url}\nfiles and log in {comfy.base}\nCtrl-C ends it", flush=True)
            while comfy.is_running:
                time.sleep(0.5)
    except KeyboardInterrupt:
        print("ended")
    finally:
        if not options.base:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
