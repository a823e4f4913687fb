"""The demo workflow as it is shipped, with the models that come with the pack: no file copied, nothing swapped."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import difflora
from scripts.example_workflows import DEMO, TRAIN_DEMO, filled

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


def test_the_shipped_pairs_train_a_slider(comfy):
    """Workflow 8 as far as the saved LoRA, on pictures of a ninth of the area and in two steps: it takes a minute in full."""
    prompt = filled(TRAIN_DEMO.prompt(), comfy.object_info())
    prompt = {name: prompt[name] for name in ("unet", "vae", "text", "pairs", "train", "keep", "loss")}
    prompt["pairs"]["inputs"]["size"] = 32
    prompt["train"]["inputs"] |= {"steps": 2, "preview_every": 0}
    prompt["keep"]["inputs"] |= {"recommended_strength": "", "filename_prefix": "trained_in_two_steps"}
    told = comfy.run(prompt).output("train")["difflora"][0]["report"]["lines"]
    assert "2 steps on 126 pairs, 48 layers of rank 4" in [line["text"] for line in told]
    slider = difflora.load(comfy.models("loras") / "trained_in_two_steps.safetensors")
    assert len(slider) == 48 and all("attn" in name for name in slider)


def test_the_demo_models_are_offered_once_and_by_flat_names(comfy):
    info = comfy.object_info()
    lists = {
        "UNETLoader": ("unet_name", "difflora_demo_wan.safetensors"),
        "VAELoader": ("vae_name", "difflora_demo_vae.safetensors"),
        "LoraLoaderModelOnly": ("lora_name", "difflora_demo_dense.safetensors"),
    }
    for node, (name, file) in lists.items():
        options = info[node]["input"]["required"][name][0]
        assert [option for option in options if option == file] == [file]
        others = {other for _, other in lists.values()} - {file}
        assert not others & set(options)


def run_demo(*arguments):
    command = [sys.executable, "demo/run.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=600)


def test_the_demo_command_leaves_sweep_plot_and_slider(comfy, tmp_path):
    done = run_demo("--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of 7 strengths" in done.stdout
    # Spearman's rank correlation of strength and density of edges, over seven strengths.
    (monotonicity,) = re.findall(r"monotonicity ([+−][\d.]+)", done.stdout)
    assert float(monotonicity.replace("−", "-")) >= 0.9
    with Image.open(tmp_path / "out/sweep.png") as sweep, Image.open(tmp_path / "out/response.png") as response:
        # Seven cells of 192 pixels beside each other, four of them and their labels below each other.
        assert 7 * 192 <= sweep.width < 7 * 200 and 4 * 192 < sweep.height < 4 * 240
        assert response.width > 1000
    (first, *others) = (tmp_path / "out/comfyui/output").glob("*.png")
    assert len(others) == 3
    with Image.open(first) as saved:
        assert json.loads(saved.info["workflow"]) == json.loads(DEMO.path.read_text("utf-8"))
    slider = difflora.load(tmp_path / "out/difflora_demo_slider.safetensors")
    assert slider.rank_text == "4" and all("attn" in name for name in slider)

    # What is done is kept: a second run renders nothing.
    log = tmp_path / "out/comfyui/comfyui.log"
    assert "20/20" in log.read_text("utf-8", "replace")
    assert run_demo("--output", tmp_path / "out").returncode == 0
    assert "20/20" not in log.read_text("utf-8", "replace")


def test_the_demo_command_says_in_one_line_what_keeps_it_from_running(start_comfy, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, word in (
            (["--output", tmp_path / "file"], "file"),
            (["--output", tmp_path / "out", "--port", port], f"port {port} is in use"),
        ):
            done = run_demo(*arguments)
            assert done.returncode == 2, done.stdout + done.stderr
            assert word in done.stderr and done.stderr.startswith("demo: ") and done.stderr.count("\n") == 1
