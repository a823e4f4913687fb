"""Every family of models in every spelling, and every name that ComfyUI takes.

The truth is ComfyUI's own: its models without memory, the map from names in LoRA files to weights that its loader uses, and
that loader. CI has ComfyUI 0.3.75, which has no LTX-2, Krea 2, Anima and MiniMax H3; ``COMFYUI_DIR`` names a newer one.
"""

import os
import re

import pytest

from difflora.names import families
from difflora.names.families import FAMILIES
from difflora.names.keys import DIFFUSERS, KOHYA, NATIVE, PEFT, read_keys, written
from scripts import family_matrix
from tests.comfyui_models import FAMILY_OF
from tests.conftest import absent
from tests.model_names import write_key

# ComfyUI's map is one for Flux.1 and FLUX.2, and one for Z-Image and Lumina 2: it offers the names of the one for the other.
ANOTHERS = {
    "FLUX.2": re.compile(r"single_transformer_blocks.*(?:to_[qkv]$|proj_mlp|proj_out|norm[._]linear)"),
    "Lumina 2": re.compile(r"attention[._](?:to|norm)_|2-1"),
}


def test_the_page_is_what_was_run_and_what_the_table_says():
    page = family_matrix.TARGET.read_text("utf-8")
    assert page == family_matrix.text(family_matrix.recorded()), "run: python -m scripts.family_matrix"


def test_every_family_but_sd_has_a_model_here():
    """SD 1.5 and 2 have SDXL's names."""
    assert {family.name for family in FAMILIES} - set(FAMILY_OF.values()) == {"SD 1.5 or 2"}


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    if not os.environ.get("COMFYUI_DIR"):
        absent("COMFYUI_DIR does not say where a ComfyUI is; python bootstrap.py test brings one")
    return dict(family_matrix.run(str(tmp_path_factory.mktemp("families"))))


@pytest.fixture(params=FAMILY_OF)
def model(request, comfyui):
    if request.param not in comfyui:
        pytest.skip("this version of ComfyUI does not have the model")
    return comfyui[request.param]["keys"] | {
        "model": request.param,
        "family": families.named(FAMILY_OF[request.param]),
        "cells": comfyui[request.param]["cells"],
    }


def matrices(model):
    return {name: shape for name, shape in model["shapes"].items() if len(shape) > 1}


@pytest.mark.comfy
def test_the_family_has_every_module_of_the_model(model):
    for name in model["shapes"]:
        known = families.own(name)
        assert known and model["family"].name in known[0].families, name
    # Only attention and feed-forward are called that, and all of it.
    for name in matrices(model):
        roles = families.own(name)[0].roles & {"attn", "ffn"}
        words = name.split(".")
        is_inside = any(
            word in ("attn", "attention", "self_attn", "cross_attn") or "attn" in word and "modulation" not in word
            for word in words
        )
        assert bool(roles) == bool(
            is_inside or {"ffn", "ff", "audio_ff", "feed_forward", "linear1", "linear2"} & set(words[2:3])
            or any(word.endswith("mlp") and "modulation" not in word and "embedder" not in words[0] for word in words[1:])
            or "transformer_1d_blocks" in words or "ff" in words or words[:1] in (["face_adapter"], ["audio_injector"])
            and "adain" not in name
        ), name  # fmt: skip


@pytest.mark.comfy
def test_every_name_that_comfyui_takes_is_read_as_the_same_weight(model):
    family, said = model["family"], {"modelspec.architecture": model["family"].words[0]}
    for name, target in model["names"].items():
        weight, rows = (target, None) if isinstance(target, str) else (target[0], target[1])
        if not weight.endswith(".weight") or name.endswith("linear1_qkv"):
            continue
        module = weight.removeprefix("diffusion_model.").removesuffix(".weight")
        if module not in model["shapes"]:
            continue  # ComfyUI's map for Flux.1 and FLUX.2 is one, and names what only one of them has
        if family.name in ANOTHERS and ANOTHERS[family.name].search(name):
            continue
        found = read_keys([f"{name}.alpha"], said)
        assert family in found.families or {"Flux", "FLUX.2"} >= {family.name, found.families[0].name}, name
        (spelled,) = found.modules
        pieces = found.pieces.get(spelled)
        assert {piece.module for piece in pieces or ()} or {spelled} == {module}, name
        if turned := model["turned"].get(name):
            there, ours = list(range(12)), list(range(12))
            for piece in pieces:
                ours[piece.rows.within(12)] = there[piece.their_rows.within(12)]
            assert ours == turned, name
        elif rows:
            (piece,) = pieces
            assert piece.rows.within(model["shapes"][module][0]) == slice(rows[1], rows[1] + rows[2]), name


@pytest.mark.comfy
@pytest.mark.parametrize("dialect", [NATIVE, KOHYA, DIFFUSERS, PEFT])
def test_what_is_said_to_be_read_by_comfyui_is(model, dialect, comfyui):
    family, names = model["family"], model["names"]
    if dialect != NATIVE and "krea2" not in comfyui:
        pytest.skip("older versions of ComfyUI take fewer names")
    for module in matrices(model):
        for one in written(module, dialect, family):
            said = families.comfyui_reads(one.name, family)
            # ComfyUI takes a few of diffusers' names for SDXL: those of modules outside attention.
            assert said == (one.name in names) or (family.name == "SDXL" and not said), one.name


@pytest.mark.comfy
def test_the_native_dialect_reaches_every_weight(model):
    family, names = model["family"], model["names"]
    for module in matrices(model):
        key = write_key(module, "alpha", NATIVE, family).removesuffix(".alpha")
        assert names.get(key) == f"diffusion_model.{module}.weight", key


@pytest.mark.comfy
@pytest.mark.parametrize("spelling", family_matrix.SPELLINGS)
def test_it_is_read_selected_slid_and_read_back_whole(model, spelling):
    """And the page says so: [modules, read, selected, on the slider, read back]."""
    cell = model["cells"][spelling]
    assert cell == [cell[0]] * 5
    known = family_matrix.recorded().get(family_matrix.version(), {}).get(model["model"])
    assert known is None or known[spelling] == cell, f"run: python -m scripts.family_matrix {model['model']}"


@pytest.mark.comfy
def test_a_slider_with_a_map_acts_on_its_rows_of_a_fused_weight(comfyui):
    found = comfyui["beside"]
    assert found["rows"] == {"q": [0, 24], "k": [24, 24], "v": [48, 24]}  # else this is not the case
    assert found["error"] < 1e-5 * found["change"]
