"""Runs the demo workflow in a real ComfyUI on the CPU and leaves its sweep, its response plot and its slider in a folder.

    python bootstrap.py demo                  sets everything up, then does that
    python bootstrap.py demo --open           … or opens ComfyUI's page, with the workflow in its list
    python bootstrap.py demo --train          … with a slider that is trained there, on pairs of pictures
    COMFYUI_DIR=/path/to/ComfyUI python demo/run.py [--output FOLDER] [--open] [--port NUMBER]

Exit code 2, and one line that says why, where it cannot be done. Nothing outside the folder is written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.example_workflows import DEMO, TRAIN_DEMO, Workflow, filled  # noqa: E402
from tests.comfy_server import ComfyError, ComfyServer, Interrupted  # noqa: E402

COMFYUI_PORT = 8188


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bootstrap.py demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--open", action="store_true", help="open ComfyUI's page in the browser in place of running it here"
    )
    parser.add_argument(
        "--port", type=_port, metavar="NUMBER", help=f"of ComfyUI; default: any free one, with --open {COMFYUI_PORT}"
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="train the slider on the pairs in demo/pairs, in place of subtracting two LoRAs",
    )
    options = parser.parse_args()
    workflow = TRAIN_DEMO if options.train else DEMO
    signal.signal(signal.SIGTERM, _stop)
    output = options.output.resolve()
    port = options.port or (COMFYUI_PORT if options.open else 0)
    try:
        _check_port(port)
        base = output / "comfyui"
        workflows = base / "user/default/workflows"
        workflows.mkdir(parents=True, exist_ok=True)
        if not (workflows / workflow.path.name).exists():  # it may have been edited and saved since
            shutil.copy(workflow.path, workflows)
        comfyui, python = os.environ.get("COMFYUI_DIR", ""), os.environ.get("COMFYUI_PYTHON", sys.executable)
        if not (Path(comfyui) / "main.py").is_file():
            return _fail(f"COMFYUI_DIR is {comfyui!r}, which is no ComfyUI: it has no main.py")
        print("ComfyUI starts … ", end="", flush=True)
        started = time.monotonic()
        with ComfyServer(base, Path(comfyui).resolve(), python=python, helper_nodes=False, port=port) as comfy:
            print(f"done, {time.monotonic() - started:.0f} s", flush=True)
            return open_page(comfy, workflow) if options.open else run(comfy, output, workflow)
    except KeyboardInterrupt:
        print("\nstopped; the same command starts again")
        return 130
    except OSError as error:
        return _fail(f"{error.strerror or error} ({error.filename or output})")
    except Interrupted:
        return _fail("the run was cancelled from ComfyUI's page")
    except ComfyError as error:
        return _fail(f"{str(error).strip().splitlines()[0]} (ComfyUI's log: {output / 'comfyui/comfyui.log'})")


def run(comfy: ComfyServer, output: Path, workflow: Workflow) -> int:
    """Queue the workflow, say how far it is, and put what it made into `output`."""
    started = time.monotonic()
    prompt = filled(workflow.prompt(), comfy.object_info())
    file = f"{prompt['keep']['inputs']['filename_prefix']}.safetensors"
    # The pictures carry the workflow, as those that are saved from the page do.
    queued = comfy.queue(prompt, extra_pnginfo={"workflow": json.loads(workflow.path.read_text("utf-8"))})
    shown = ""
    while not comfy.get(f"/history/{queued}"):
        if (now := _stage(comfy, queued, workflow)) != shown:
            shown = now
            print(f"  {shown}", flush=True)
        time.sleep(0.2)
    result = comfy.wait(queued)
    print(f"Rendered and measured in {time.monotonic() - started:.0f} s\n")

    rows = [Image.open(io.BytesIO(comfy.view(**image))) for image in result.output("save")["images"]]
    sweep, response, slider = output / "sweep.png", output / "response.png", output / file
    _pile(rows).save(sweep)
    response.write_bytes(comfy.view(**result.output("response")["images"][0]))
    shutil.copy(comfy.models("loras") / file, slider)
    for path, what in (
        (sweep, "four seeds from strength −3 to +3: look at this first"),
        (response, "what the slider changes, what it should not, and how far it is safe"),
        (slider, "the slider itself, a LoRA of rank 4"),
    ):
        print(f"{path}\n    {what}")
    print("\nWhat Sweep Response says of it:")
    for line in result.output("response")["difflora"][0]["report"]["lines"]:
        print(f"    {line['text']}")
    train = "--train " if workflow is TRAIN_DEMO else ""
    print(f"\nThe same in ComfyUI's page: python bootstrap.py demo {train}--open")
    return 0


def _stage(comfy: ComfyServer, prompt_id: str, workflow: Workflow) -> str:
    """What the run is at, in words that change a few times for each part of it."""
    told = comfy.told("grid")
    rendering = str(told[-1]["difflora"][0]["report"]["lines"][0]["text"]) if told else ""
    if workflow is not TRAIN_DEMO:
        return rendering or "the pair becomes a slider"
    # The grid says that it has none yet as soon as the run begins.
    if rendering and not rendering.startswith("0 "):
        return rendering
    trained, steps = comfy.steps(prompt_id, "train")
    if trained:
        return f"{trained // 25 * 25} of {steps} training steps" if trained < steps else "the slider is trained"
    encoded, pictures = comfy.steps(prompt_id, "pairs")
    return f"{encoded // 50 * 50} of {pictures} pictures encoded" if encoded else "the pictures of the pairs are read"


def open_page(comfy: ComfyServer, workflow: Workflow) -> int:
    """Open the page and wait until it is no longer wanted."""
    print(
        f'\n{comfy.url}\n\nPress w for the list of workflows, open "{workflow.name}", and press Run.\nCtrl-C here ends ComfyUI.'
    )
    if not webbrowser.open(comfy.url):
        print("(No browser could be opened from here: open the address by hand.)")
    while comfy.is_running:
        time.sleep(0.5)
    return _fail(f"ComfyUI has ended. Its log: {comfy.log_file}")


def _pile(rows: list[Image.Image]) -> Image.Image:
    """Pictures of one width, one below the other."""
    pile = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        pile.paste(row, (0, top))
        top += row.height
    return pile


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port: use a number from 1 to 65535")
    return int(text)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        if os.name != "nt":  # a port that was used a moment ago is free; on Windows this would find every port so
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(error.errno, f"port {port} is in use; name another one with --port", "127.0.0.1") from error


def _fail(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return 2


def _stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
