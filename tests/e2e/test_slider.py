"""The model slider on models of every precision and in every order, against dense W + s·ΔW computed apart."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed
from tests.e2e.test_chain import chain, message
from tests.e2e.test_server import sampling

FP8 = "slider_fp8.safetensors"
SCALED = "slider_fp8_scaled.safetensors"
HALF = "slider_{}.safetensors"
FULL = "slider_everything.safetensors"  # a LoRA that changes every kind of parameter
I2V = "slider_i2v_lora.safetensors"


@pytest.fixture(scope="module")
def files(comfy):
    """Models in several precisions, and LoRAs with more than plain matrices, in the server's folders."""
    models, loras = comfy.models("diffusion_models"), comfy.models("loras")
    base = load_file(models / small_models.WAN)
    for dtype in (torch.bfloat16, torch.float16):
        save_file({key: value.to(dtype) for key, value in base.items()}, models / HALF.format(dtype_name(dtype)))
    linear = {
        f"{name}.weight"
        for name, _ in small_models.linear_layers(models / small_models.WAN)
        if name.startswith("blocks.")
    }
    # As published fp8 files are: matrices of the blocks in fp8, the rest as it was.
    save_file(
        {key: value.to(torch.float8_e4m3fn) if key in linear else value.half() for key, value in base.items()},
        models / FP8,
    )
    scaled = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, value in base.items():
        if key in linear:
            scale = value.abs().max() / 448
            scaled[key] = (value / scale).to(torch.float8_e4m3fn)
            scaled[key.replace(".weight", ".scale_weight")] = scale.float()
        else:
            scaled[key] = value.half()
    save_file(scaled, models / SCALED)
    small_models.write_lora(loras / I2V, models / small_models.WAN_I2V, seed=5)
    save_file(everything(base), loras / FULL)
    return comfy


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def everything(base):
    """A LoRA for all that a Wan has: matrices in and outside the blocks, a convolution, biases, norms, modulation."""
    random = torch.Generator().manual_seed(8)
    tensors = {}
    for key, weight in base.items():
        module = key.removesuffix(".weight").removesuffix(".bias")
        noise = 0.1 * torch.randn(weight.shape, generator=random)
        if key.endswith(".bias"):
            tensors[f"diffusion_model.{module}.diff_b"] = noise
        elif weight.ndim in (2, 5):
            up, down = (
                torch.randn(weight.shape[0], 3, generator=random),
                torch.randn(3, *weight.shape[1:], generator=random),
            )
            tensors[f"diffusion_model.{module}.lora_up.weight"] = up.view(-1, 3, *[1] * (weight.ndim - 2)) * 0.05
            tensors[f"diffusion_model.{module}.lora_down.weight"] = down * 0.05
        else:
            tensors[f"diffusion_model.{module}.diff"] = noise
    return tensors


def graph(strength, lora=small_models.DENSE, model=small_models.WAN, apply="auto", weight_dtype="default"):
    return {
        "lora": {"class_type": "DiffLoraLoad", "inputs": {"lora_name": lora}},
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": weight_dtype}},
        "slider": slider("model", strength, apply),
    }


def slider(model, strength, apply="auto"):
    return {
        "class_type": "DiffLoraSliderModel",
        "inputs": {"model": [model, 0], "lora": ["lora", 0], "strength": strength, "apply": apply},
    }


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


_read = itertools.count(1)


def read_weights(comfy, prompt, source="slider", kind="TestSaveWeights", **options):
    """The weights that the model at `source` computes with, and the run's result."""
    name = f"weights{next(_read)}"  # one of its own: a result from the cache would leave an old file
    result = comfy.run(prompt | {"read": node(kind, model=[source, 0], name=name, **options)})
    path = comfy.base / "output" / f"{name}.safetensors"
    tensors = load_file(path)
    path.unlink()
    return tensors, result


@pytest.fixture
def read(files):
    return partial(read_weights, files)


def lines(result, name="slider"):
    return [line["text"] for line in message(result, name)["report"]["lines"]]


def delta(comfy, module, lora=small_models.DENSE):
    """up @ down of one module, from the file, in float64."""
    tensors = {key: value.double().numpy() for key, value in load_file(comfy.models("loras") / lora).items()}
    for key in (f"lora_unet_{module.replace('.', '_')}", f"diffusion_model.{module}"):
        if f"{key}.lora_up.weight" in tensors:
            up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
            scale = tensors.get(f"{key}.alpha", down.shape[0]) / down.shape[0]
            return scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return None


def largest_error(comfy, base, changed, strength, lora=small_models.DENSE):
    """max |computed − (W + s·ΔW)| over all layers, as a share of the largest s·ΔW, W being what the model holds."""
    worst, layers = 0.0, 0
    for key in (key for key in base if key.endswith(".weight")):
        change = delta(comfy, key.removesuffix(".weight"), lora)
        before, after = base[key].double().numpy(), changed[key].double().numpy()
        if change is None:
            assert np.array_equal(before, after), key
            continue
        worst = max(worst, np.abs(after - (before + strength * change)).max() / np.abs(strength * change).max())
        layers += 1
    assert layers == 30
    return worst


# Model file, weight_dtype, how, the largest error allowed, and whether it is the one that auto takes. The help page
# states what comes out. On a CPU, ComfyUI computes in float32, and holds half and fp8 files so unless it is told.
PRECISIONS = [
    (small_models.WAN, "default", "patch", 4e-6, True),
    (small_models.WAN, "default", "bypass", 4e-6, False),
    (HALF.format("bfloat16"), "default", "patch", 4e-6, True),
    (HALF.format("float16"), "default", "bypass", 4e-6, False),
    (FP8, "default", "patch", 4e-6, True),
    (FP8, "fp8_e4m3fn", "patch", 2.0, False),
    (FP8, "fp8_e4m3fn", "bypass", 4e-6, True),
    (small_models.WAN, "fp8_e4m3fn", "patch", 2.0, False),
    (small_models.WAN, "fp8_e4m3fn", "bypass", 4e-6, True),
    (small_models.WAN, "fp8_e5m2", "bypass", 4e-6, True),
    (SCALED, "default", "patch", 2.0, False),
    (SCALED, "default", "bypass", 4e-6, True),
]


@pytest.mark.parametrize(("model", "weight_dtype", "apply", "allowed", "is_auto"), PRECISIONS)
def test_largest_error_against_dense_weights(files, read, model, weight_dtype, apply, allowed, is_auto):
    strength = 0.25
    base, _ = read(graph(0.0, model=model, weight_dtype=weight_dtype))
    changed, result = read(graph(strength, model=model, weight_dtype=weight_dtype, apply=apply))
    error = largest_error(files, base, changed, strength)
    print(f"{model} {weight_dtype} {apply}: {error:.3g}")
    assert error < allowed
    if allowed > 1:
        assert error > 0.3  # what the help page warns of
    assert lines(result)[0].startswith("30 of 30")
    if is_auto:
        automatic, result = read(graph(strength, model=model, weight_dtype=weight_dtype, apply="auto"))
        assert ("beside" in lines(result)[0]) == (apply == "bypass")
        assert all(torch.equal(automatic[key], changed[key]) for key in changed)


@pytest.mark.slow
def test_a_model_held_in_bfloat16(files, start_comfy):
    """As on a GPU: the weights are bf16. Patching rounds W + s·ΔW; bypass rounds s·ΔW alone, and less."""
    server = start_comfy("--bf16-unet")
    read = partial(read_weights, server)
    base, _ = read(graph(0.0))
    assert base["blocks.0.ffn.0.stored"].dtype == torch.bfloat16
    patched, _ = read(graph(0.25, apply="patch"))
    beside, _ = read(graph(0.25, apply="bypass"))
    errors = [largest_error(files, base, changed, 0.25) for changed in (patched, beside)]
    print(f"bfloat16: patch {errors[0]:.3g}, bypass {errors[1]:.3g}")
    server.stop()
    assert 0.01 < errors[0] < 0.2
    assert errors[1] < 4e-6


def test_every_kind_of_parameter_changes_exactly_in_both_modes(files, read):
    """Convolutions, biases, norms and modulation go into the weights; of matrices, bypass leaves the weights alone."""
    strength, lora = -1.5, load_file(files.models("loras") / FULL)
    base, _ = read(graph(0.0, lora=FULL), kind="TestSaveParameters")
    for apply in ("patch", "bypass"):
        changed, result = read(graph(strength, lora=FULL, apply=apply), kind="TestSaveParameters")
        assert base.keys() == changed.keys()
        assert lines(result)[0].startswith(f"{len(base)} of {len(base)}")
        for key, before in base.items():
            module = f"diffusion_model.{key.removesuffix('.weight').removesuffix('.bias')}"
            if key.endswith(".bias"):
                change = lora[f"{module}.diff_b"].double()
            elif f"{module}.diff" in lora:
                change = lora[f"{module}.diff"].double()
            elif apply == "bypass" and before.ndim == 2:
                change = 0.0
            else:
                change = torch.from_numpy(delta(files, key.removesuffix(".weight"), FULL)).view(before.shape)
            truth = before.double() + strength * change
            assert float((changed[key].double() - truth).abs().max()) <= 3e-7 * float(truth.abs().max()), (apply, key)
    computed, _ = read(graph(strength, lora=FULL, apply="bypass"))
    plain, _ = read(graph(0.0, lora=FULL))
    for key in (key for key in plain if key.endswith(".weight")):
        truth = plain[key].double().numpy() + strength * delta(files, key.removesuffix(".weight"), FULL)
        assert np.abs(computed[key].double().numpy() - truth).max() < 2e-6 * np.abs(truth).max(), key


def test_image_modules_of_an_i2v_lora_are_named_and_left_out_on_a_t2v_model(read):
    _, result = read(graph(1.0, lora=I2V))
    warnings = [line["text"] for line in message(result, "slider")["report"]["lines"] if line["level"] == "warning"]
    assert len(warnings) == 1 and "6 image modules" in warnings[0] and "cross_attn.k_img" in warnings[0]
    assert lines(result)[0].startswith("30 of 36")


def test_all_of_an_i2v_lora_goes_on_an_i2v_model(read):
    _, result = read(graph(1.0, lora=I2V, model=small_models.WAN_I2V))
    assert lines(result) == ["36 of 36 modules applied"]


_run = itertools.count(1)


def sampled(comfy, prompt, *sources, seed=1):
    """Latents that several models of one prompt sample, really sampled, whatever is in ComfyUI's cache."""
    prompt, names = dict(prompt), []
    for source in sources:
        run = next(_run)
        prompt |= {
            f"text{run}": node("TestConditioning", seed=1, length=64, run=run),
            f"empty{run}": sampling()["empty"],
            f"sample{run}": node(
                "KSampler",
                model=[source, 0],
                positive=[f"text{run}", 0],
                negative=[f"text{run}", 0],
                latent_image=[f"empty{run}", 0],
                seed=seed,
                steps=2,
                cfg=1.0,
                sampler_name="uni_pc",
                scheduler="simple",
                denoise=1.0,
            ),
            f"keep{run}": node("TestSaveTensor", value=[f"sample{run}", 0], name=f"latent{run}"),
        }
        names.append(comfy.base / f"output/latent{run}.safetensors")
    comfy.run(prompt)
    return [load_file(path)["value"] for path in names]


def close(a, b, base):
    """Two results agree to rounding, measured by how far one of them is from the base model's."""
    return float((a - b).abs().max()) < 2e-3 * float((a - base).abs().max())


def test_sliders_of_both_kinds_mixed_with_clones_add_up_in_any_order(files):
    """Bypass, patch and bypass on a shifted clone equal one patch of their sum; whatever ran before changes nothing."""
    kinds = graph(1.5, apply="patch")
    [whole] = sampled(files, kinds | {"shifted": node("ModelSamplingSD3", model=["slider", 0], shift=3.0)}, "shifted")
    [base] = sampled(files, kinds | {"shifted": node("ModelSamplingSD3", model=["model", 0], shift=3.0)}, "shifted")
    for order in itertools.permutations(("patch", "bypass", "bypass")):
        mixed = graph(0.25, apply=order[0])
        mixed["shifted"] = node("ModelSamplingSD3", model=["slider", 0], shift=3.0)
        mixed["second"] = slider("shifted", 2.0, order[1])
        mixed["third"] = slider("second", -0.75, order[2])
        [latent] = sampled(files, mixed, "third")
        assert close(latent, whole, base), order


def test_models_with_and_without_sliders_take_turns(files):
    """All in one prompt, and again with other seeds in another order: each model always gives its own result."""
    branches = graph(2.0, apply="bypass")
    branches["shifted"] = node("ModelSamplingSD3", model=["slider", 0], shift=8.0)
    branches["more"] = slider("shifted", 1.0, "bypass")
    branches["patched"] = slider("slider", 1.0, "patch")
    branches["core"] = node(
        "LoraLoaderModelOnly", model=["slider", 0], lora_name=small_models.SPARSE, strength_model=1.0
    )
    names = ["model", "slider", "shifted", "more", "patched", "core"]
    alone = {}
    for name in names:
        files.forget()
        [alone[name]] = sampled(files, branches, name)
    files.forget()
    for order in (names, names[::-1], ["slider", "core", "slider", "model", "slider"]):
        latents = sampled(files, branches, *order)
        for name, latent in zip(order, latents, strict=True):
            assert torch.equal(latent, alone[name]), (order, name)


def test_a_clone_that_is_changed_while_its_slider_is_loaded_does_not_apply_it_twice(files):
    """ComfyUI copies "is injected" to clones, and add_patches on such a clone injects it: under the model that runs."""
    prompt = graph(2.0, apply="bypass")
    [first] = sampled(files, prompt, "slider")  # loaded now
    clone = node("LoraLoaderModelOnly", model=["slider", 0], lora_name=small_models.SPARSE, strength_model=1.0)
    both = prompt | {"clone": clone, "keep": node("TestKeep", value=["clone", 0])}
    files.run(both)
    [other] = sampled(files, both, "slider", seed=2)  # with the clone in the cache, so that it lives
    [again] = sampled(files, both, "slider")
    [base] = sampled(files, prompt, "model", seed=2)
    files.forget()
    [fresh] = sampled(files, prompt, "slider", seed=2)
    [fresh_base] = sampled(files, prompt, "model", seed=2)
    assert torch.equal(other, fresh) and torch.equal(base, fresh_base)
    assert torch.equal(again, first)


def test_a_slider_of_a_cancelled_run_does_not_stay_on_the_model(files):
    prompt = graph(0.0)
    [base] = sampled(files, prompt, "model")
    long = graph(3.0, apply="bypass") | {name: step for name, step in sampling(steps=500).items() if name != "model"}
    long["sample"]["inputs"]["model"] = ["slider", 0]
    prompt_id = files.queue(long)
    files.wait_for_node(prompt_id, "sample")
    files.interrupt()
    with pytest.raises(Interrupted):
        files.wait(prompt_id)
    [after] = sampled(files, prompt, "model")
    assert torch.equal(after, base)


@pytest.mark.parametrize("apply", ["patch", "bypass"])
def test_weights_that_were_taken_off_the_device_are_changed_as_well(files, read, apply):
    """Partial loading, as with too little VRAM: patches then apply on the fly, and branches as always."""
    base, _ = read(graph(0.0))
    changed, _ = read(graph(2.0, apply=apply), unload=6_000_000)
    assert largest_error(files, base, changed, 2.0) < 2e-6
    assert "Unloaded partially" in files.log


@pytest.mark.slow
def test_a_server_that_caches_nothing_gives_the_same(files, start_comfy, read):
    """Every node runs anew in every prompt, and nothing keeps the LoRAs alive in between."""
    pair = chain(apply="bypass")
    expected, _ = read(pair)
    server = start_comfy("--cache-none")
    for _ in range(2):
        weights, result = read_weights(server, pair)
        assert "small" in result.executed
        assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)
    server.stop()


@pytest.mark.parametrize("value", [[1.0, 2.0], [], "2", None, float("nan"), 10.5, {"a": 1}])
def test_a_strength_that_is_not_one_number_is_refused_in_one_sentence(files, value):
    prompt = graph(1.0) | {
        "value": node("TestJson", text=json.dumps(value)),
        "keep": node("TestKeep", value=["slider", 0]),
    }
    prompt["slider"]["inputs"]["strength"] = ["value", 0]
    with pytest.raises(NodeFailed) as failed:
        files.run(prompt)
    assert failed.value.node_id == "slider"
    assert failed.value.details["exception_type"].endswith("InputError")
    assert failed.value.message.startswith("strength is ")


def test_a_slider_beside_the_weights_says_that_a_saving_node_behind_it_loses_it(files):
    prompt = graph(1.0, apply="bypass") | {"save": node("ModelSave", model=["slider", 0], filename_prefix="lost")}
    told = {line["text"]: line["level"] for line in message(files.run(prompt), "slider")["report"]["lines"]}
    assert (
        told["ModelSave behind this slider gets the model without it: set apply to patch, or use Save LoRA."]
        == "warning"
    )
    assert told["not in the weights: saving or merging the model leaves the slider out"] == "info"
    prompt["slider"]["inputs"]["apply"] = "patch"
    assert not any("ModelSave" in text for text in lines(files.run(prompt)))


def test_a_slider_that_is_off_is_the_base_model_and_one_that_is_on_is_as_before(read):
    def with_switch(**on):
        prompt = graph(2.5)
        prompt["slider"]["inputs"] |= on
        return read(prompt)

    base, _ = read(graph(0))
    on, _ = with_switch()  # a saved workflow lacks the input
    off, result = with_switch(on=False)
    assert all(torch.equal(off[key], value) for key, value in base.items())
    assert any(not torch.equal(on[key], value) for key, value in base.items())
    again, _ = with_switch(on=True)
    assert all(torch.equal(again[key], value) for key, value in on.items())
    assert lines(result) == ["switched off: nothing is changed, and the strength is kept"]
