"""A slider with a map reaches q, k and v where ComfyUI's model has them in one weight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import absent


@pytest.mark.comfy
def test_parts_of_one_weight_all_act_each_on_its_rows(tmp_path):
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        absent("COMFYUI_DIR does not say where a ComfyUI is; python bootstrap.py test brings one")
    script = Path(__file__).parents[1] / "comfyui_fused.py"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run([python, script, tmp_path], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["rows"] == {"q": [0, 24], "k": [24, 24], "v": [48, 24]}  # else this is not the case
    assert found["error"] < 1e-5 * found["change"]
