"""What a stranger can send to /prompt: nothing outside the pack's folders is opened or changed, and every answer is one line."""

import ctypes
import json
import math
import os
import struct
import sys

import pytest

from tests import small_models
from tests.comfy_server import ComfyError, NodeFailed, PromptRejected
from tests.e2e.test_chain import chain
from tests.e2e.test_sweep import grid, node

LONG = "x" * 10_000
HARMLESS = ("slider", "a..b", "~root", "$HOME", "%TEMP%", "--help", "; rm -rf .", "名前")
DEVICES = ("CON", "nul", "COM1.safetensors", "sub/LPT9", "AUX.txt", "CONIN$")
ESCAPES = (
    "../outside", "../../outside", "..\\outside", "sub/../../outside", "sub\\..\\..\\outside", "./../outside",
    "{outside}/canary", "/etc/hostname", "\\etc\\hostname", "//server/share/x", "\\\\server\\share\\x",
    "\\\\?\\C:\\x", "\\\\.\\PhysicalDrive0", "C:\\x", "c:x", "C:/x", "file:///etc/hostname", "link/x", "link/../../x",
    "a\0b", "../outside\0.safetensors", "a\nb", "\u202e../x", "..\u2215outside", "．．/outside", LONG, "sub/" + LONG, "x/" * 3000,
)  # fmt: skip


class Opened:
    """Names of the files that anybody opens in some folders, by Linux's inotify."""

    IN_OPEN, IN_ISDIR, IN_NONBLOCK = 0x20, 0x40000000, 0o4000

    def __init__(self, *folders):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(self.IN_NONBLOCK)
        for folder in folders:
            assert self._libc.inotify_add_watch(self._file, os.fsencode(folder), self.IN_OPEN) > 0

    def names(self):
        found, size = [], struct.calcsize("iIII")
        try:
            data = os.read(self._file, 1 << 20)
        except BlockingIOError:
            return found
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            if not mask & self.IN_ISDIR:
                found.append(data[size : size + length].rstrip(b"\0").decode())
            data = data[size + length :]
        return found

    def close(self):
        os.close(self._file)


@pytest.fixture(scope="module")
def comfy(start_comfy):
    """A server of its own: NaN in a server's history is no JSON, and breaks every page that asks for it."""
    return start_comfy()


@pytest.fixture
def guarded(comfy, tmp_path):
    """The server, with canaries around its folders; afterwards all is as it was, and no canary has been opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    lora = (comfy.models("loras") / small_models.DENSE).read_bytes()
    canaries = [
        outside / "canary.safetensors",
        comfy.base / "models/outside.safetensors",
        comfy.base / "outside.safetensors",
    ]
    for path in canaries:
        path.write_bytes(lora)
    link = comfy.models("loras") / "link"
    link.symlink_to(outside, target_is_directory=True)
    before = files_around(comfy.base, outside)
    opened = Opened(outside, comfy.base / "models", comfy.base) if sys.platform == "linux" else None
    comfy.outside = outside
    yield comfy
    comfy._until(lambda: not comfy.running(), 120, "a prompt does not end")  # where one output is wrong, others run
    names = opened.names() if opened else []
    if opened:
        opened.close()
    after = files_around(comfy.base, outside)
    link.unlink()
    for path in canaries:
        path.unlink()
    assert after == before
    assert not [name for name in names if "outside" in name or "canary" in name]
    assert comfy.get("/system_stats")


def files_around(base, outside):
    """Every file of the server's folder but those that it may write, and of the folder beside it."""
    may = ("models/loras/", "output/", "temp/", "user/", "comfyui.log")
    found = {}
    for folder in (base, outside):
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and "__pycache__" not in name and not name.startswith(may):
                found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def lora_files(comfy):
    folder = comfy.models("loras")
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "link" not in path.parts
    }


def answer(comfy, prompt):
    """What the user is told: "" if it worked. One line of bearable length in every case."""
    try:
        comfy.run(prompt, timeout=60)
    except NodeFailed as failure:
        # Of this pack's own kinds: what goes wrong was foreseen.
        assert failure.details["exception_type"].split(".")[-2] == "errors", failure.details["exception_type"]
        text = failure.message
    except PromptRejected as rejection:
        [text] = [
            problem["message"] + ": " + problem["details"]
            for node in rejection.body["node_errors"].values()
            for problem in node["errors"]
        ][:1] or [str(rejection)]
        return "rejected: " + text
    except ComfyError as error:
        pytest.fail(f"no answer: {error}")
    else:
        return ""
    assert text and "\n" not in text and len(text) < 600 and text.isprintable(), text
    return text


def saving(prefix, if_exists="next number", **more):
    save = {
        "lora": ["lora", 0],
        "filename_prefix": prefix,
        "dtype": "float32",
        "dialect": "native",
        "if_exists": if_exists,
    }
    return {
        "lora": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": small_models.DENSE}},
        "save": {"class_type": "DiffLoraSave", "inputs": save | more},
    }


@pytest.mark.parametrize("if_exists", ["next number", "overwrite"])
def test_saving_stays_in_the_loras_folder(guarded, if_exists):
    outside, before = str(guarded.outside), lora_files(guarded)
    # A number makes an ordinary name of a device's.
    for name in ESCAPES + (DEVICES if if_exists == "overwrite" else ()):
        told = answer(guarded, saving(name.replace("{outside}", outside), if_exists))
        # Look-alikes of dots and slashes are ordinary letters of a name.
        if name in ("..\u2215outside", "．．/outside", "\u202e../x"):
            continue
        assert told, name[:80]
        assert "rejected" not in told and outside not in told.replace(f"{outside}/canary", ""), told
    for name in HARMLESS:
        assert answer(guarded, saving(f"hostile/{name}", if_exists)) == "", name
    new = lora_files(guarded) - before
    assert len(new) >= len(HARMLESS) and all(name.endswith(".safetensors") for name in new)
    for name in new:
        (guarded.models("loras") / name).unlink()


def test_saving_names_what_is_missing(guarded):
    for name in ("", "   ", "sub/", ".safetensors", "\\"):
        assert answer(guarded, saving(name, "overwrite")), name
    before = lora_files(guarded)
    for strength in ("nan to inf", "-99 to 99", "3 to -3", "1e400 to 2", LONG, "<b>", "0 to 0"):
        assert "recommended_strength" in answer(guarded, saving("never", recommended_strength=strength))
    assert lora_files(guarded) == before


@pytest.mark.parametrize("linked", [False, True])
def test_loading_stays_in_the_loras_folders(guarded, linked):
    """Not every version of ComfyUI compares a name with the node's list, and none does so with what comes by a link."""
    for name in (*ESCAPES, *DEVICES, "outside.safetensors", ".", "", "link"):
        name = name.replace("{outside}", str(guarded.outside))
        for spelled in {name, f"{name}.safetensors"}:
            prompt = {
                "load": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": spelled}},
                "keep": {"class_type": "TestKeep", "inputs": {"value": ["load", 0]}},
            }
            if linked:
                prompt["text"] = {"class_type": "TestText", "inputs": {"text": spelled}}
                prompt["load"]["inputs"]["lora_name"] = ["text", 0]
            told = answer(guarded, prompt)
            assert told.startswith("rejected") or "is not in the loras folder" in told, (spelled[:80], told)


SELECTIONS = [
    "/(a+)+$/", "/(.*)*x/", "/" + "(" * 5000 + "/", "(" * 50_000, "/" + "a?" * 40 + "a" * 40 + "/", "!" * 1000,
    "/a{1,99999}{1,99999}/", "*" * 2000, ",".join(["/.*a.*b.*c.*d/"] * 30), "blocks 0-99999999999999999999",
    "blocks 9-0", "attn=1e999", "attn=nan", "ffn=", "&", "attn & & ffn", "\0", "\u202e", '"', "/", "nothing", "=",
    "a" * 200_000, "attn," * 20_000 + "nothing &",
]  # fmt: skip


def test_selection_texts_end_quickly(guarded):
    for text in SELECTIONS:
        graph = chain(selection=text)
        prompt = {name: graph[name] for name in ("a", "b", "difference", "selected")}
        prompt["keep"] = {"class_type": "TestKeep", "inputs": {"value": ["selected", 0]}}
        told = answer(guarded, prompt)
        assert "election" in told or told == "", (text[:60], told)


NUMBERS = [math.nan, math.inf, -math.inf, 1e308, -1e308, 10**40, -(10**40), 0, -1, 2**63, "1e999", "nan", "x", "", None, [],
           {}, {"a": 1}, True, [["a"]], ["missing", 0], ["a", 99], ["a", "b"], LONG]  # fmt: skip
WIDGETS = {
    "difference": ("weight_a", "weight_b", "unmatched"),
    "selected": ("selection", "rest"),
    "small": ("rule", "rank", "energy", "ratio", "max_rank"),
    "slider": ("strength", "apply"),
    "wanvideo": ("strength", "merge_loras", "low_mem_load"),
    "a": ("lora_name", "ignore_unknown"),
    "analyze": ("rank", "show"),
    "save": ("filename_prefix", "dtype", "dialect", "if_exists", "recommended_strength"),
    "sweep": ("start", "stop", "count", "include_zero", "strengths"),
    "grid": ("arrange", "cell_size", "fps", "baseline", "text"),
    "response": ("target", "colour_limit", "brightness_limit", "saturation_limit", "moments"),
    "compare": ("mode", "amplify", "fps", "label_a", "label_b"),
    "save pair": ("stem", "dataset", "side_a", "captions", "caption", "word_a", "overwrite"),
    "check": ("dataset", "side_b", "least_similar", "most_similar", "colour_drift"),
}
ANYTHING_GOES = ("selection", "filename_prefix", "ignore_unknown", "rank", "merge_loras", "low_mem_load",
                 "include_zero", "strengths", "text", "label_a", "label_b", "stem", "dataset", "side_a", "side_b", "caption",
                 "word_a", "overwrite")  # fmt: skip


def algebra(comfy):
    graph = chain()
    graph["analyze"] = {
        "class_type": "DiffLoraAnalyze",
        "inputs": {"a": ["a", 0], "b": ["b", 0], "rank": 4, "show": "difference"},
    }
    graph["wanvideo"] = {
        "class_type": "DiffLoraSliderWanVideo",
        "inputs": {"lora": ["small", 0], "strength": 1.0, "merge_loras": False, "low_mem_load": False},
    }
    for name in ("slider", "wanvideo"):
        graph[f"keep {name}"] = {"class_type": "TestKeep", "inputs": {"value": [name, 0]}}
    graph["save"] = {
        "class_type": "DiffLoraSave",
        "inputs": {
            "lora": ["small", 0],
            "filename_prefix": "hostile_types",
            "dtype": "float32",
            "dialect": "native",
            "if_exists": "overwrite",
            "recommended_strength": "",
        },
    }
    return graph


def clips(comfy):
    """A sweep of ready-made clips, and all that follows one."""
    return {
        "sweep": node("DiffLoraStrengthSweep", start=0.0, stop=1.0, count=2, include_zero=False, strengths=""),
        "clip": node("TestClip", strength=["sweep", 0], frames=2, width=32, height=16),
        "grid": grid("clip"),
        "response": node("DiffLoraSliderResponse", sweep=["grid", 1], target="edges", colour_limit=5.0,
                         brightness_limit=10.0, saturation_limit=10.0, moments=2),
        "one": node("TestClip", strength=1.0, frames=2, width=32, height=16),
        "compare": node("DiffLoraABCompare", a=["one", 0], b=["one", 0], mode="difference", amplify=4.0, fps=16.0,
                        label_a="A", label_b="B"),
    }  # fmt: skip


def dataset(comfy):
    names = {"dataset": "odd pairs", "side_a": "more", "side_b": "less"}
    return {
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=1000),
        "twin": node("EmptyImage", width=64, height=48, batch_size=1, color=200),
        "save pair": node("DiffLoraSavePair", **names, image_a=["picture", 0], image_b=["twin", 0], stem="one",
                          captions="same for both", caption="a street", word_a="dense", word_b="bare", overwrite=True),
        "check": node("DiffLoraCheckPairs", **names, least_similar=0.3, most_similar=0.985, colour_drift=8.0),
    }  # fmt: skip


GRAPHS = {
    **dict.fromkeys(("sweep", "grid", "response", "compare"), clips),
    **dict.fromkeys(("save pair", "check"), dataset),
}


@pytest.mark.parametrize("name", WIDGETS)
def test_odd_values_are_answered_in_one_line(guarded, name):
    before = lora_files(guarded)
    whole = GRAPHS.get(name, algebra)(guarded)
    assert whole[name]["inputs"].keys() >= set(WIDGETS[name]) - {"ignore_unknown"}
    for widget in WIDGETS[name]:
        for value in NUMBERS:
            graph = json.loads(json.dumps(whole))
            graph[name]["inputs"][widget] = value
            if name == "small" and widget in ("energy", "ratio", "max_rank"):
                graph[name]["inputs"]["rule"] = {"energy": "energy", "ratio": "ratio", "max_rank": "knee"}[widget]
            told = answer(guarded, graph)
            # NaN is below no minimum, and ComfyUI 0.3.75 compares no value with a list of options. A text takes any,
            # and what is no number can be true or false.
            if value != value and widget not in ANYTHING_GOES:
                assert told, (widget, value)
    for file in lora_files(guarded) - before:
        (guarded.models("loras") / file).unlink()


def test_the_inner_nodes_of_a_sweep_take_no_orders_from_strangers(guarded):
    """A cell replaces the folder that its key names, and frees the pictures that it was given."""
    outside = str(guarded.outside)
    prompt = {"clip": clips(guarded)["one"], "keep": node("TestKeep", value=["clip", 0])}
    for name in (outside, f"../../../../{guarded.outside.name}", *ESCAPES, *DEVICES, ""):
        name = name.replace("{outside}", outside)
        inner = {"cell": node("DiffLoraSweepCell", images=["clip", 0], key=name, run="a" * 32),
                 "after": node("TestKeep", value=["cell", 0])}  # fmt: skip
        assert "run is not one that Sweep Grid started" in answer(guarded, prompt | inner), name[:80]
        inner = {"layout": node("DiffLoraSweepLayout", run=name), "after": node("TestKeep", value=["layout", 0])}
        assert "run is not one that Sweep Grid started" in answer(guarded, prompt | inner), name[:80]
    # The clip in ComfyUI's cache still has its pixels.
    shown = node(
        "DiffLoraABCompare", a=["clip", 0], b=["clip", 0], mode="wipe", amplify=4.0, fps=16.0, label_a="", label_b=""
    )
    assert answer(guarded, prompt | {"shown": shown}) == ""


def test_the_server_still_works(comfy):
    comfy.run(algebra(comfy))
    (comfy.models("loras") / "hostile_types.safetensors").unlink()
