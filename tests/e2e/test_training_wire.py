"""A MODEL that is opened for training: right gradients in every precision, little memory, and afterwards as before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import absent

SCRIPT = Path(__file__).parents[1] / "training_wire.py"
PRECISIONS = ("float32", "bf16", "fp16", "fp8", "cast to fp8", "fp8_fast", "scaled fp8")

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
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_agree_with_finite_differences(answers, precision):
    assert answers[precision]["slope"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_is_afterwards_as_it_was(answers, precision):
    found = answers[precision]
    assert found["inference"]  # or there would have been nothing to put back
    assert found["same"] and found["restored"] and found["random"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_latents_and_velocities_are_the_models_own(answers, precision):
    assert answers[precision]["latents"]
    assert answers[precision]["velocity"] < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_are_not_remembered(answers, precision):
    """Weights that are cast for a layer are the most of it: at 14B they alone would be 28 GB."""
    assert answers[precision]["kept"] < answers[precision]["kept without checkpoints"] / 4
