"""What the pack leaves in ComfyUI's temp folder: a bounded number of bytes, and never less than somebody still needs.

ComfyUI itself is replaced by what these modules ask of it.
"""

import gc
import os
import sys
import time
import types

import pytest
import torch

import difflora
from difflora.saving.save import lossless_dtype
from tests.lora_files import FFN, Q, factors, write
from tests.pack_modules import pack_module


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    """ComfyUI's modules, as far as the files under test need them; slow() makes every look at a folder take a while."""
    folders = types.ModuleType("folder_paths")
    folders.get_temp_directory = lambda: str(tmp_path / "temp")
    folders.get_input_directory = lambda: str(tmp_path / "input")
    folders.annotated_filepath = lambda name: (name, None)
    folders.folder_names_and_paths = {
        f"kind {number}": ([str(tmp_path / "models")], {".safetensors", ".pt"}) for number in range(20)
    }
    folders.looked = []

    def get_full_path(kind, name):
        folders.looked.append(name)
        time.sleep(folders.delay)
        path = tmp_path / "models" / name
        return str(path) if path.is_file() else None

    folders.delay = 0.0
    folders.get_full_path = get_full_path
    links = types.ModuleType("comfy_execution.graph_utils")
    links.is_link = lambda value: isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    for name, module in {
        "folder_paths": folders,
        "comfy_execution": types.ModuleType("comfy_execution"),
        "comfy_execution.graph_utils": links,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in (
        "pack.nodes.sweep.files",
        "pack.nodes.common.inputs",
        "pack.nodes.sweep.previews",
        "pack.nodes.slider.temp_files",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "models").mkdir()
    (tmp_path / "input").mkdir()
    yield folders
    for name in (
        "pack.nodes.sweep.files",
        "pack.nodes.common.inputs",
        "pack.nodes.sweep.previews",
        "pack.nodes.slider.temp_files",
    ):
        sys.modules.pop(name, None)


class TestWatchedFiles:
    def test_a_prompt_with_thousands_of_names_over_a_slow_disk_holds_nobody_up(self, comfyui):
        files = pack_module("nodes.sweep.files").WatchedFiles()
        comfyui.delay = 0.001
        prompt = {
            str(number): {
                "inputs": {"name": f"model {number}.safetensors", "other": ["a", 0], "text": f"Hello. {number}"}
            }
            for number in range(5000)
        }
        seconds = []
        for _ in range(3):  # the best of three: the machine may be busy
            start = time.perf_counter()
            files.look_soon(prompt)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.05

    def test_each_name_once_only_models_and_not_too_many(self, comfyui):
        module = pack_module("nodes.sweep.files")
        files = module.WatchedFiles()
        texts = [f"model {number % 7}.safetensors" for number in range(100)]
        texts += ["a sentence. And one more", "picture.png", "x" * 500 + ".safetensors", "v1.5", "a\n.pt", "b\0.pt"]
        files.look_soon({"1": {"inputs": {"texts": {"deep": texts}}}, "2": {"inputs": None}, "3": "odd", "4": {}})
        files.wait()
        assert set(comfyui.looked) == {f"model {number}.safetensors" for number in range(7)}
        assert len(comfyui.looked) == 7 * 20
        comfyui.looked.clear()
        files.look_soon({"1": {"inputs": {"texts": [f"{number}.pt" for number in range(10_000)]}}})
        files.wait()
        assert len(set(comfyui.looked)) == module.MOST_NAMES

    @pytest.mark.parametrize(
        "prompt", [None, [], "text", {"1": None}, {"1": {"inputs": 5}}, {"1": {"inputs": [[[["a.pt"]]]]}}]
    )
    def test_what_is_no_prompt_does_no_harm(self, comfyui, prompt):
        files = pack_module("nodes.sweep.files").WatchedFiles()
        files.look_soon(prompt)
        files.wait()

    def test_a_file_is_seen_to_change_and_no_state_says_where_it_is(self, comfyui, tmp_path):
        files = pack_module("nodes.sweep.files").WatchedFiles()
        path = tmp_path / "models/a.pt"
        path.write_bytes(b"1")
        files.look_soon({"1": {"inputs": {"name": "a.pt"}}})
        files.wait()
        assert files.state == ""
        path.write_bytes(b"12")
        files.look(path)
        assert files.has_changed(path) and files.state and str(tmp_path) not in files.state and len(files.state) < 80


class TestPreviews:
    def test_the_longest_unused_go_and_what_is_shown_stays(self, comfyui):
        previews = pack_module("nodes.sweep.previews").Previews(budget=2500)
        paths = [previews.path(f"clip-{number}.mp4") for number in range(5)]
        for age, path in enumerate(reversed(paths)):
            path.write_bytes(bytes(1000))
            os.utime(path, (time.time() - 100 * (age + 1),) * 2)
        previews.use([paths[0]])
        assert [path.exists() for path in paths] == [True, False, False, False, True]
        assert previews.losses == 0
        previews.use([paths[4]])
        paths[0].unlink()
        assert previews.losses == 1 and previews.losses == 1

    def test_all_that_one_player_shows_stays_whatever_the_budget(self, comfyui):
        previews = pack_module("nodes.sweep.previews").Previews(budget=0)
        paths = [previews.path(f"clip-{number}.mp4") for number in range(3)]
        for path in paths:
            path.write_bytes(bytes(1000))
        previews.use(paths)
        assert all(path.exists() for path in paths)


class TestWrapperFiles:
    def test_files_nobody_holds_go_and_held_ones_stay(self, comfyui, tmp_path):
        difflora = pack_module("difflora")

        for seed, name in enumerate("ab"):
            write(tmp_path / f"{name}.safetensors", {Q: factors(seed=seed)})
        a, b = (difflora.load(tmp_path / f"{name}.safetensors") for name in "ab")
        files = pack_module("nodes.slider.temp_files").TempFiles(budget=0)

        def progress():
            return lambda done, total: None

        held = files.path_of(difflora.subtract(a, b), progress)
        for weight in (2.0, 3.0, 4.0):
            last = files.path_of(difflora.subtract(a, b, weight_a=weight), progress)
        left = {str(path) for path in (tmp_path / "temp/differential-lora").iterdir()}
        assert {held, last} < left and len(left) == 3  # the one before was still held when this one was made
        assert files.losses == 1  # two that were handed out are gone
        del held
        gc.collect()
        files.path_of(difflora.subtract(a, b, weight_a=5.0), progress)
        assert len(list((tmp_path / "temp/differential-lora").iterdir())) == 2  # this one, and `last`
        assert files.losses == 2


@pytest.mark.parametrize(
    ("stored", "weight", "expected"),
    [
        (torch.bfloat16, 1.0, torch.bfloat16),
        (torch.float16, 1.0, torch.float16),
        (torch.bfloat16, 0.3, torch.float32),
        (torch.float32, 1.0, torch.float32),
    ],
)
def test_the_smallest_dtype_that_loses_nothing(tmp_path, stored, weight, expected):
    for number, name in enumerate("ab"):
        modules = {Q: factors(seed=number, dtype=stored), FFN: factors(seed=9 + number, dtype=stored)}
        write(tmp_path / f"{name}.safetensors", modules)
    a, b = (difflora.load(tmp_path / f"{name}.safetensors") for name in "ab")
    difference = difflora.subtract(a, b, weight_a=weight)
    assert lossless_dtype(difference) == expected
    difflora.save(difference, tmp_path / "small.safetensors", dtype=expected)
    back = difflora.load(tmp_path / "small.safetensors")
    for name in difference:
        one, other = (each[name].up.double() @ each[name].down.double() for each in (back, difference))
        assert (one - other).abs().max() < 1e-12
