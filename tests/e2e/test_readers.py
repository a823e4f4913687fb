"""ComfyUI and WanVideoWrapper read every file that we write as we mean it: kind × dialect × reader, merged weights compared.

The libraries from PyPI are in tests/readers. Two dialects are for those: ComfyUI has no Wan names of diffusers or PEFT, and WanVideoWrapper
takes diffusers' `attn1` for cross-attention.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflora
from tests import small_models
from tests.e2e.test_block_toggle import Wrapper, node

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

STRENGTH = 1.5
FILTER = range(3, 9)


def plain(folder, model):
    return small_models.write_lora(folder / "plain.safetensors", model)


def outside(folder, model):
    """Layers before and after the blocks, too."""
    return small_models.write_lora(folder / "outside.safetensors", model, modules=r"blocks|head|time|text")


def loha(folder, model):
    random = torch.Generator().manual_seed(4)
    stored = {}
    for name, (rows, columns) in small_models.linear_layers(model):
        if name.startswith("blocks."):
            for part, shape in (("w1_a", (rows, 2)), ("w1_b", (2, columns)), ("w2_a", (rows, 2)), ("w2_b", (2, columns))):
                stored[f"diffusion_model.{name}.hada_{part}"] = 0.2 * torch.randn(shape, generator=random)
    save_file(stored, folder / "loha.safetensors")
    return folder / "loha.safetensors"


def vectors(folder, model):
    """As lightx2v's and CausVid's files: factors, and differences of biases, norms and modulations."""
    stored = load_file(small_models.write_lora(folder / "factors.safetensors", model, dialect="diffusion_pipe"))
    for name, value in load_file(model).items():
        if name.startswith("blocks.") and (name.endswith(("bias", "modulation")) or "norm" in name):
            module = name.removesuffix(".weight").removesuffix(".bias")
            part = "diff_b" if name.endswith("bias") else "diff"
            stored[f"diffusion_model.{module}.{part}"] = torch.full_like(value, 0.25)
    save_file(stored, folder / "vectors.safetensors")
    return folder / "vectors.safetensors"


def full(folder, model):
    random = torch.Generator().manual_seed(5)
    layers = [(name, shape) for name, shape in small_models.linear_layers(model) if name.startswith("blocks.")]
    save_file({f"diffusion_model.{name}.diff": 0.1 * torch.randn(shape, generator=random) for name, shape in layers},
              folder / "full.safetensors")
    return folder / "full.safetensors"


def convolution(folder, model):
    weight = load_file(model)["patch_embedding.weight"]
    parts = {"lora_up": torch.randn(len(weight), 2, 1, 1, 1), "lora_down": torch.randn(2, *weight.shape[1:])}
    stored = {f"diffusion_model.patch_embedding.{name}.weight": 0.3 * value for name, value in parts.items()}
    # The wrapper's block filter and ComfyUI both know a LoRA for Wan by its blocks.
    save_file(stored | load_file(plain(folder, model)), folder / "convolution.safetensors")
    return folder / "convolution.safetensors"


KINDS = {
    "lora": lambda folder, model: difflora.load(plain(folder, model)),
    "attention only": lambda folder, model: difflora.load(plain(folder, model)).select("attn"),
    "outside the blocks": lambda folder, model: difflora.load(outside(folder, model)),
    "loha": lambda folder, model: difflora.load(loha(folder, model)),
    "loha − lora, re-ranked": lambda folder, model: difflora.rerank(
        difflora.subtract(difflora.load(loha(folder, model)), difflora.load(plain(folder, model))), difflora.FixedRank(4)),
    "biases, norms, modulation": lambda folder, model: difflora.load(vectors(folder, model)),
    "full differences": lambda folder, model: difflora.load(full(folder, model)),
    "full differences, re-ranked": lambda folder, model: difflora.rerank(
        difflora.load(full(folder, model)), difflora.FixedRank(6)),
    "convolution": lambda folder, model: difflora.load(convolution(folder, model)),
}  # fmt: skip
cells = [pytest.mark.parametrize("dialect", ["native", "kohya"]), pytest.mark.parametrize("kind", KINDS)]


def each(function):
    for mark in cells:
        function = mark(function)
    return function


def expected(model, lora, chosen=lambda name: True):
    """The model's parameters with the changes in them, in float64."""
    truth = {name: value.double() for name, value in load_file(model).items()}
    for name in filter(chosen, lora):
        module, _, last = name.rpartition(".")
        own = f"{module}.bias" if last == "bias" else name if name in truth else f"{name}.weight"
        truth[own] = truth[own] + STRENGTH * lora[name].dense(torch.float64).view(truth[own].shape)
    return truth


def same(found, truth, model):
    assert set(truth) <= set(found)
    stored = load_file(model)
    for name, value in truth.items():
        # Both take the key of a modulation, but not every version patches what hangs on a block itself. Our sliders do, or say so.
        if name.endswith("modulation") and torch.equal(found[name], stored[name]):
            continue
        error = (found[name].double() - value).abs().max() / value.abs().max()
        assert error < 2e-6, f"{name}: off by {error:.1e} of its largest value"


@each
def test_comfyui_reads_what_we_write(comfy, tmp_path, kind, dialect):
    model = comfy.models("diffusion_models") / small_models.WAN
    lora = KINDS[kind](tmp_path, model)
    # A name of its own: ComfyUI keeps what it has loaded by name.
    file = difflora.save(lora, comfy.models("loras") / f"{kind} {dialect}.safetensors", dialect=dialect, overwrite=True)
    comfy.run({
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "lora": node("LoraLoaderModelOnly", model=["model", 0], lora_name=file.name, strength_model=STRENGTH),
        "save": node("TestSaveParameters", model=["lora", 0], name=f"{kind} {dialect}"),
    })  # fmt: skip
    same(load_file(comfy.base / f"output/{kind} {dialect}.safetensors"), expected(model, lora), model)


def through_wrapper(comfy, file, name, **select):
    prompt = Wrapper(lora=["lora", 0]).prompt
    prompt["lora"] = node(
        "WanVideoLoraSelect", lora=file.name, strength=STRENGTH, low_mem_load=False, merge_loras=True, **select)  # fmt: skip
    if select:
        wanted = {f"blocks.{n}.": n in FILTER for n in range(40)}
        prompt["filter"] = {"class_type": "WanVideoLoraBlockEdit", "inputs": wanted | {"layer_filter": ""}}
    prompt["save"] = node("TestSaveWrapperWeights", model=["model", 0], name=name)
    kept = ("model", "lora", "filter", "save")
    comfy.run({key: value for key, value in prompt.items() if key in kept})
    return load_file(comfy.base / f"output/{name}.safetensors")


@each
def test_the_wrapper_reads_what_we_write(comfy, wrapper, tmp_path, kind, dialect):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    lora = KINDS[kind](tmp_path, model)
    file = difflora.save(lora, comfy.models("loras") / f"{kind} {dialect}.safetensors", dialect=dialect, overwrite=True)
    same(through_wrapper(comfy, file, "read"), expected(model, lora), model)


def test_the_wrappers_block_filter_picks_from_the_default_dialect(comfy, wrapper, tmp_path):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    lora = difflora.load(plain(tmp_path, model))
    file = difflora.save(lora, comfy.models("loras") / "filtered.safetensors", overwrite=True)
    found = through_wrapper(comfy, file, "filtered", blocks=["filter", 0])
    same(found, expected(model, lora, lambda name: int(name.split(".")[1]) in FILTER), model)
