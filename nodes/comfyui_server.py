"""Starts a real ComfyUI with this pack in it and runs graphs there: the client side of quickstart and of the tests.

    with ComfyServer(find_comfyui(root), python) as server:
        name = server.upload_image(picture)
        outputs = server.run(graph)
        png = server.fetch_image(**outputs["9"]["images"][0])

Standard library plus aiohttp, which every ComfyUI has; no torch. The server listens on the loopback only and works in
a temporary base directory, so the user's own input, output and custom nodes are left alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK_NAME = "comfyui-likeness"

# What main.py and the built-in nodes import. Module names, because a stand-in for torchaudio has no distribution.
COMFYUI_MODULES = [
    *("torch", "torchvision", "torchaudio", "torchsde", "transformers", "safetensors", "aiohttp", "av", "yaml", "PIL"),
    *("scipy", "einops", "psutil", "sqlalchemy", "alembic", "comfy_aimdo", "comfy_kitchen", "comfyui_frontend_package"),
]
FIND_MISSING = "import sys, importlib.util as u; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None))"
HAS_ACCELERATOR = "import sys, torch; sys.exit(not torch.accelerator.is_available())"

Progress = Callable[[str, int, int], None]


class ComfyServerError(RuntimeError):
    """The server did not start, or died; the message ends with the tail of its log."""


class ComfyRunError(RuntimeError):
    """A graph was refused or failed; `node` is the id of the node at fault, None where no node is."""

    def __init__(self, message: str, node: str | None = None):
        super().__init__(message)
        self.node = node


def find_comfyui(root: Path) -> Path | None:
    """Return the ComfyUI to use with the checkout `root`, or None.

    Tried in turn: $COMFYUI_DIR, the ComfyUI whose custom_nodes hold `root`, ~/ComfyUI. Raises ValueError if
    $COMFYUI_DIR is set to something else than a ComfyUI.
    """
    asked = os.environ.get("COMFYUI_DIR")
    if asked:
        if not _is_comfyui(Path(asked)):
            raise ValueError(f"COMFYUI_DIR is {asked!r}, which holds no main.py and comfy/: name a ComfyUI folder.")
        return Path(asked).absolute()
    parent = Path(root).absolute().parent
    candidates = [parent.parent] if parent.name == "custom_nodes" else []
    return next(filter(_is_comfyui, [*candidates, Path.home() / "ComfyUI"]), None)


def find_models(root: Path) -> Path | None:
    """The models folder of the ComfyUI to use with the checkout `root`, or None. Raises ValueError as `find_comfyui`.

    ComfyUI's desktop app keeps its program elsewhere: there `custom_nodes` lies beside the models alone.
    """
    folder, parent = find_comfyui(root), Path(root).absolute().parent
    beside = parent.parent / "models"
    if folder is None and parent.name == "custom_nodes" and beside.is_dir():
        return beside
    return None if folder is None else folder / "models"


def find_tokenizer(root: Path) -> Path | None:
    """The folder of the CLIP tokenizer that a ComfyUI brings: checkpoints of one file hold none."""
    folder = find_comfyui(root)
    tokenizer = folder / "comfy" / "sd1_tokenizer" if folder is not None else None
    return tokenizer if tokenizer is not None and tokenizer.is_dir() else None


def tokenizer_setting(section: str, settings: type) -> dict[str, dict]:
    """The setting ``tokenizer`` in ``section``, where ``settings`` have it and a ComfyUI brings one; else nothing."""
    tokenizer = find_tokenizer(Path(__file__).absolute().parent.parent)  # links unresolved: one may be in custom_nodes
    if tokenizer is None or "tokenizer" not in settings.__dataclass_fields__:
        return {}
    return {section: {"tokenizer": str(tokenizer)}}


def find_python(comfyui_dir: Path) -> Path | None:
    """Return the Python that has all that `comfyui_dir` needs, or None.

    Tried in turn: $COMFYUI_PYTHON, ComfyUI's own .venv and venv, the embedded Python of the Windows build, this
    interpreter. Raises ValueError if $COMFYUI_PYTHON is set but cannot run ComfyUI.
    """
    asked = os.environ.get("COMFYUI_PYTHON")
    if asked:
        missing = missing_modules(Path(asked))
        if missing:
            raise ValueError(f"COMFYUI_PYTHON is {asked!r}, which cannot run ComfyUI; missing: {', '.join(missing)}.")
        return Path(asked)
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    candidates = [comfyui_dir / ".venv" / inside, comfyui_dir / "venv" / inside]
    candidates += [comfyui_dir.parent / "python_embeded" / "python.exe", Path(sys.executable)]
    return next((python for python in candidates if not missing_modules(python)), None)


class ComfyServer:
    """A ComfyUI process with this pack; use as a context manager.

    python: the interpreter that runs it, see `find_python`; arguments: more options for main.py; start_limit:
    seconds until it must answer. Raises ComfyServerError when it does not start.
    """

    def __init__(
        self,
        comfyui_dir: Path,
        python: Path,
        pack: Path = ROOT,
        arguments: Sequence[str] = (),
        start_limit: float = 300,
    ):
        self.comfyui_dir, self.python, self.pack = Path(comfyui_dir).absolute(), Path(python), Path(pack).absolute()
        self.arguments = tuple(arguments)
        self.start_limit = start_limit
        self.url = ""

    def __enter__(self) -> ComfyServer:
        with ExitStack() as stack:
            # Windows may hold a file of a process that has just ended; a leftover in TMP is no reason to fail.
            scratch = tempfile.TemporaryDirectory(prefix="likeness-comfyui-", ignore_cleanup_errors=True)
            self._base = Path(stack.enter_context(scratch))
            link = self._base / "custom_nodes" / PACK_NAME
            link.parent.mkdir()
            _link_folder(link, self.pack)
            stack.callback(os.rmdir if os.name == "nt" else os.unlink, link)
            output = stack.enter_context(open(self._base / "server.log", "wb"))
            self._process = self._start(output)
            stack.callback(_stop, self._process)
            self._wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def log(self) -> str:
        """Return what the server has printed so far; only while it runs."""
        return (self._base / "server.log").read_text(encoding="utf-8", errors="replace")

    def object_info(self, name: str | None = None) -> dict:
        """Return ComfyUI's description of the node `name`, or of all nodes by name. Raises KeyError."""
        found = json.loads(self._call("GET", f"/object_info/{name}" if name else "/object_info"))
        if name and name not in found:
            raise KeyError(f"ComfyUI at {self.url} has no node {name!r}: did its pack load? See the server's log.")
        return found[name] if name else found

    def upload_image(self, path: Path, name: str | None = None) -> str:
        """Copy the file `path` into the server's input folder; return the name that LoadImage takes."""
        import aiohttp

        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", Path(path).read_bytes(), filename=name or Path(path).name)
        return json.loads(self._call("POST", "/upload/image", data=form))["name"]

    def fetch_image(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """Return an image file that a graph has written; the arguments are an entry of a node's `images`."""
        return self._call("GET", "/view", params={"filename": filename, "subfolder": subfolder, "type": type})

    def interrupt(self) -> None:
        """Stop the graph that runs now; its `run` raises ComfyRunError."""
        self._call("POST", "/interrupt", json={})

    def run(self, graph: dict, on_progress: Progress | None = None, limit: float | None = None) -> dict:
        """Run a graph in API format; return what its output nodes showed, by node id.

        on_progress: called with (node id, steps done, steps in all), in a thread of its own; limit: seconds until
        the graph is stopped. Raises ComfyRunError for a graph that is refused, fails, is interrupted or too slow.
        """
        import aiohttp

        try:
            return asyncio.run(self._run(graph, on_progress, limit))
        except aiohttp.ClientError as error:
            raise ComfyServerError(f"ComfyUI does not answer: {error}\n{self._log_tail()}") from error

    async def _run(self, graph: dict, on_progress: Progress | None, limit: float | None) -> dict:
        import aiohttp

        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as events,
        ):
            prompt = await _queue(session, graph, client)
            try:
                await asyncio.wait_for(self._follow(events, prompt, on_progress), limit)
            except asyncio.TimeoutError:  # noqa: UP041 - Python 3.10 has a class of its own
                await _cancel(session, prompt)
                raise ComfyRunError(f"The graph was stopped: it ran longer than {limit} s.") from None
            async with session.get(f"/history/{prompt}") as answer:
                return (await answer.json())[prompt]["outputs"]

    async def _follow(self, events, prompt: str, on_progress: Progress | None) -> None:
        """Read the server's events until the prompt has ended; raise what went wrong in it."""
        failure = None
        async for message in events:
            event = json.loads(message.data) if isinstance(message.data, str) else {}  # binary: a preview image
            kind, data = event.get("type"), event.get("data", {})
            if data.get("prompt_id") != prompt:
                continue
            if kind in ("execution_error", "execution_interrupted"):
                failure = failure or _failure(kind, data)
            elif kind == "executing" and data["node"] is None:
                # Only now the outputs are in the history; `execution_success` comes before.
                if failure is not None:
                    raise failure
                return
            elif on_progress and kind in ("executing", "progress") and data["node"] is not None:
                # In a thread, so that the callback may call the server itself, `interrupt` for one.
                await asyncio.to_thread(on_progress, data["node"], data.get("value", 0), data.get("max", 1))
        raise ComfyServerError(f"ComfyUI closed the connection while the graph ran.\n{self._log_tail()}")

    def _start(self, output) -> subprocess.Popen:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [str(self.python), str(self.comfyui_dir / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self._base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        # An extra_model_paths.yaml may name the user's custom nodes, whatever the base directory.
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME]
        probe = subprocess.run([str(self.python), "-c", HAS_ACCELERATOR], check=False, capture_output=True)
        if probe.returncode != 0:
            command.append("--cpu")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        return subprocess.Popen(
            [*command, *self.arguments],
            cwd=self._base,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_limit
        while not self._answers():
            code = self._process.poll()
            if code is not None:
                raise ComfyServerError(f"ComfyUI ended with code {code} while it started.\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ComfyServerError(f"ComfyUI did not answer within {self.start_limit} s.\n{self._log_tail()}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        import aiohttp

        try:
            return asyncio.run(self._request("GET", "/system_stats"))[0] == 200
        except aiohttp.ClientError:
            return False

    def _call(self, method: str, path: str, **arguments) -> bytes:
        """Make one request; return the answer's body. Raises ComfyServerError."""
        import aiohttp

        try:
            status, body = asyncio.run(self._request(method, path, **arguments))
        except aiohttp.ClientError as error:
            raise ComfyServerError(f"ComfyUI does not answer {path}: {error}\n{self._log_tail()}") from error
        if status != 200:
            raise ComfyServerError(f"ComfyUI answered {path} with status {status}: {body.decode(errors='replace')}")
        return body

    async def _request(self, method: str, path: str, **arguments) -> tuple[int, bytes]:
        import aiohttp

        async with aiohttp.ClientSession(self.url) as session, session.request(method, path, **arguments) as answer:
            return answer.status, await answer.read()

    def _log_tail(self, lines: int = 40) -> str:
        return "Its last lines:\n" + "\n".join(self.log().splitlines()[-lines:])


async def _queue(session, graph: dict, client: str) -> str:
    """Queue the graph and return its prompt id. Raises ComfyRunError if any part of it is invalid."""
    async with session.post("/prompt", json={"prompt": graph, "client_id": client}) as answer:
        body = json.loads(await answer.read())
        refused = answer.status != 200
    if refused or body.get("node_errors"):
        if not refused:
            # ComfyUI runs the valid outputs of a graph that has invalid ones too.
            await _cancel(session, body["prompt_id"])
        raise _refusal(body)
    return body["prompt_id"]


async def _cancel(session, prompt: str) -> None:
    async with session.post("/queue", json={"delete": [prompt]}):
        pass
    async with session.post("/interrupt", json={"prompt_id": prompt}):
        pass


def _refusal(body: dict) -> ComfyRunError:
    """Put ComfyUI's answer to an invalid graph into words."""
    problems = [
        f"node {node} ({report['class_type']}): {problem['message']}: {problem['details']}"
        for node, report in body.get("node_errors", {}).items()
        for problem in report["errors"]
    ]
    if problems:
        return ComfyRunError("ComfyUI refused the graph: " + "; ".join(problems), node=next(iter(body["node_errors"])))
    error = body.get("error", {})
    node = (error.get("extra_info") or {}).get("node_id")
    return ComfyRunError(f"ComfyUI refused the graph: {error.get('message')} ({error.get('details')})", node=node)


def _failure(kind: str, data: dict) -> ComfyRunError:
    where = f"node {data['node_id']} ({data['node_type']})"
    if kind == "execution_interrupted":
        return ComfyRunError(f"The graph was interrupted in {where}.", node=data["node_id"])
    what = f"{data['exception_type']}: {data['exception_message'].strip()}"
    return ComfyRunError("\n".join([f"{where} failed: {what}", *data["traceback"]]).strip(), node=data["node_id"])


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def missing_modules(python: Path, modules: Sequence[str] = COMFYUI_MODULES) -> list[str]:
    """Return which of `modules` `python` does not find; all of them if it does not run."""
    command = [str(python), "-c", FIND_MISSING, *modules]
    try:
        probe = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return list(modules)
    return probe.stdout.split() if probe.returncode == 0 else list(modules)


def _link_folder(link: Path, target: Path) -> None:
    if os.name == "nt":
        # A junction, unlike a symbolic link, needs no special right on Windows.
        import _winapi

        try:
            _winapi.CreateJunction(str(target), str(link))
        except OSError as error:
            raise ComfyServerError(f"Windows could not link {target} into ComfyUI: {error}") from error
    else:
        link.symlink_to(target, target_is_directory=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
