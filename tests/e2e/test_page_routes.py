"""What the page asks the server for, by HTTP: what cached nodes said, and what is in a LoRA."""

import copy
import json
import shutil
import urllib.parse

import pytest

from tests import small_models
from tests.e2e.test_sweep import swept


def rerank(rank, lora=small_models.DENSE):
    settings = {"rule": "rank", "rank": rank, "energy": 0.9, "ratio": 10, "max_rank": 64}
    return {
        "1": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": lora}},
        "2": {"class_type": "DiffLoraRerank", "inputs": {"lora": ["1", 0], **settings}},
        "3": {
            "class_type": "DiffLoraSave",
            "inputs": {
                "lora": ["2", 0], "filename_prefix": f"routes{rank}", "dtype": "float32", "dialect": "native",
                "if_exists": "overwrite",
            },
        },
    }  # fmt: skip


def ask(comfy, prompt_id, nodes):
    code, answer = comfy._request("/differential_lora/last_words", {"prompt_id": prompt_id, "nodes": nodes})
    assert code == 200
    return json.loads(answer)


def test_cached_nodes_are_answered_for_with_what_they_said(comfy):
    first = comfy.run(rerank(3))
    said = first.output("2")["difflora"][0]
    again = comfy.run(rerank(3))
    assert "2" in again.cached
    prompt_id = again["prompt"][1]
    told = ask(comfy, prompt_id, {"1": "", "2": "", "77": ""})
    assert set(told) == {"1", "2"}
    assert told["2"] == json.loads(json.dumps(said))
    assert ask(comfy, prompt_id, {"2": told["2"]["key"]}) == {}
    other = comfy.run(rerank(2))
    assert ask(comfy, other["prompt"][1], {"2": ""})["2"]["key"] != told["2"]["key"]
    assert ask(comfy, "no such prompt", {"2": ""}) == {}


def test_nodes_inside_a_sweep_are_answered_for_with_what_they_said_last(comfy):
    """They run under other ids, once per strength, and none of them is among the cached nodes that ComfyUI names."""
    prompt = swept("0.5, 2", seed=31)
    prompt["difference"]["inputs"]["weight_a"] = ["sweep", 0]
    prompt["slider"]["inputs"]["strength"] = 1.0
    first = comfy.run(prompt)
    inside = ("difference", "selected", "small", "slider")
    again = comfy.run(prompt)
    assert not set(inside) & set(again.cached) and not again.executed
    told = ask(comfy, again["prompt"][1], dict.fromkeys(inside, ""))
    for name in inside:
        last = [ran for ran in first.executed if ran.endswith(f".{name}")][-1]
        assert told[name] == json.loads(json.dumps(first["outputs"][last]["difflora"][0])), name
    assert "24 of 24 modules applied" in str(told["slider"])
    other = copy.deepcopy(prompt)
    other["slider"]["inputs"]["strength"] = 3.0
    watched = comfy.run(other)
    assert ask(comfy, watched["prompt"][1], {"slider": told["slider"]["key"]})["slider"]["key"] != told["slider"]["key"]


@pytest.mark.parametrize("body", [[], {"prompt_id": "x"}, {"prompt_id": "x", "nodes": 3}, "text"])
def test_what_no_page_asks_is_refused(comfy, body):
    code, _ = comfy._request("/differential_lora/last_words", body)
    assert code == 400


def test_a_header_is_told_without_a_run_and_without_a_path(comfy):
    code, answer = comfy._request(f"/differential_lora/lora?name={small_models.DENSE}")
    told = json.loads(answer)
    assert code == 200
    assert told["report"]["title"] == {"text": small_models.DENSE}
    assert len(told["modules"]) > 10
    read = json.loads(answer)["modules"]
    ran = comfy.run(rerank(5))
    assert read.keys() == ask(comfy, ran["prompt"][1], {"1": ""})["1"]["modules"].keys()
    assert str(comfy.base) not in answer.decode()


@pytest.mark.parametrize(
    "name", ["", "absent.safetensors", "../../user/comfyui.db", "/etc/passwd", "C:\\x.safetensors", "a\0b", "..%2f" * 9]
)
def test_other_names_are_refused_in_one_line_without_a_path(comfy, name):
    code, answer = comfy._request(f"/differential_lora/lora?{urllib.parse.urlencode({'name': name})}")
    error = json.loads(answer)["error"]
    assert code == 422
    assert "is not in the loras folder" in error and "\n" not in error
    assert str(comfy.base) not in error


def ask_pair(comfy, a, b):
    code, answer = comfy._request(f"/differential_lora/pair?{urllib.parse.urlencode({'a': a, 'b': b})}")
    assert code == 200
    return json.loads(answer), answer.decode()


def test_both_sides_of_a_pair_are_told_without_a_run_and_as_the_run_tells_them(comfy):
    told, _ = ask_pair(comfy, small_models.DENSE, small_models.SPARSE)
    prompt = {
        "1": {"class_type": "DiffLoraLoadPair", "inputs": {"lora_a": small_models.DENSE, "lora_b": small_models.SPARSE}},
        "2": {"class_type": "DiffLoraSubtract", "inputs": {"a": ["1", 0], "b": ["1", 1], "weight_a": 1.0, "weight_b": 1.0, "unmatched": "error"}},
        "3": {"class_type": "TestKeep", "inputs": {"value": ["2", 0]}},
    }  # fmt: skip
    ran = comfy.run(prompt)
    [said] = ran.output("1")["difflora"]
    assert {key: value for key, value in said.items() if key != "key"} == told
    assert len(told["modules"]) > 10 and told["modules"].keys() == ran.output("2")["difflora"][0]["modules"].keys()
    assert [side["name"] for side in told["pair"]["sides"]] == [small_models.DENSE, small_models.SPARSE]
    assert told["pair"]["offers"] == []  # the one that fits is taken
    told, _ = ask_pair(comfy, small_models.DENSE, small_models.DENSE)
    assert told["pair"]["offers"] == [small_models.SPARSE]
    assert any("same file" in line["text"] for line in told["report"]["lines"])
    told, _ = ask_pair(comfy, small_models.SPARSE, small_models.DENSE)
    assert any("swap" in line["text"] for line in told["report"]["lines"])


def test_a_pair_for_wan22_leads_to_the_same_pair_for_the_other_model_and_a_mixed_one_is_told(comfy):
    loras = comfy.models("loras") / "wan22"
    loras.mkdir(exist_ok=True)
    names = {
        (side, noise): f"wan22/{side}_{noise}_noise.safetensors"
        for side in ("dense", "sparse")
        for noise in ("high", "low")
    }
    for (side, _), name in names.items():
        source = small_models.DENSE if side == "dense" else small_models.SPARSE
        shutil.copyfile(comfy.models("loras") / source, loras.parent / name)
    told, _ = ask_pair(comfy, names["dense", "high"], names["sparse", "high"])
    assert told["pair"]["twins"] == {"noise": "low", "files": [names["dense", "low"], names["sparse", "low"]]}
    told, _ = ask_pair(comfy, names["dense", "high"], names["sparse", "low"])
    assert told["pair"]["twins"] is None
    assert any(line["text"].startswith("A is for high noise and B for low noise") for line in told["report"]["lines"])
    told, _ = ask_pair(comfy, small_models.DENSE, small_models.SPARSE)
    assert told["pair"]["twins"] is None and not any("noise" in line["text"] for line in told["report"]["lines"])


@pytest.mark.parametrize("name", ["", "../../user/comfyui.db", "/etc/passwd", "C:\\x.safetensors", "a\0b"])
def test_a_side_that_cannot_be_read_is_named_and_the_other_is_told(comfy, name):
    told, text = ask_pair(comfy, small_models.DENSE, name)
    levels = [line["level"] for line in told["report"]["lines"]]
    assert levels.count("error") == 1 and levels.count("info") == 1
    assert str(comfy.base) not in text and "passwd:" not in text
