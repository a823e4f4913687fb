"""A MODEL that is opened for training: right gradients in every precision, little memory, and afterwards as before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import absent

SCRIPT = Path(__file__).parents[1] / "training_wire.py"
PRECISIONS = ("float32", "bf16", "fp16", "fp8", "cast to fp8", "fp8_fast", "scaled fp8", "gguf Q8_0", "gguf Q4_0")

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    if not os.environ.get("COMFYUI_DIR"):
        absent("COMFYUI_DIR does not say where a ComfyUI is")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run(
        [python, str(SCRIPT), str(tmp_path_factory.mktemp("wire"))], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=PRECISIONS)
def found(request, answers):
    if request.param.startswith("gguf") and not os.environ.get("COMFYUI_GGUF_DIR"):
        pytest.skip("COMFYUI_GGUF_DIR does not say where a ComfyUI-GGUF is")
    return answers[request.param]


def test_gradients_agree_with_finite_differences(found):
    assert found["slope"] == pytest.approx(1, abs=0.02)


def test_the_model_is_afterwards_as_it_was(found):
    assert found["inference"]  # or there would have been nothing to put back
    assert found["same"] and found["restored"] and found["random"]


def test_latents_and_velocities_are_the_models_own(found):
    assert found["latents"]
    assert found["velocity"] < 1e-5


def test_blocks_are_not_remembered(found):
    """Weights that are cast for a layer are the most of it: at 14B they alone would be 28 GB."""
    assert found["kept"] < found["kept without checkpoints"] / 4


@pytest.mark.parametrize(
    "model, reason", [("SDXL", "not a flow-matching model"), ("VACE", "needs a picture in addition to the text")]
)
def test_models_that_cannot_be_trained_on_are_refused_with_what_to_do_instead(answers, model, reason):
    said = answers["refused"][model]
    assert reason in said and ("Use " in said or "works on" in said)
