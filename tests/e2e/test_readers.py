"""ComfyUI and WanVideoWrapper against us: kind × writer × reader, merged weights compared. `pytest -v` prints the table.

Three ways. Files that we write, read by them. Files as other trainers write them, read by them and by us: the same file must mean
the same weights. And files that ComfyUI itself writes. The libraries from PyPI are in tests/readers.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflora
from difflora.names.keys import OUTPUT_DIALECTS
from tests import small_models
from tests.e2e.test_block_toggle import Native, Wrapper, node

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

STRENGTH = 1.5
PATCH = "patch_embedding.weight"
FILTER = range(3, 9)


def cells(kinds, writers, reader):
    """Rows of the table: kind and writer, under the name kind-writer-reader."""
    rows = [pytest.param(kind, writer, id=f"{kind}-{writer}-{reader}") for kind in kinds for writer in writers]
    return pytest.mark.parametrize(("kind", "writer"), rows)


# --- Files of other trainers ----------------------------------------------------------------------------------------

# What a module's weight of shape (o, i) may be stored as; r gives random numbers. In ComfyUI's and LyCORIS's words.
FORMS = {
    "lora": lambda o, i, r: {"lora_up.weight": r(o, 4), "lora_down.weight": r(4, i), "alpha": torch.tensor(2.0)},
    "lora without alpha": lambda o, i, r: {"lora_B.weight": r(o, 4), "lora_A.weight": r(4, i)},
    "lora in bfloat16": lambda o, i, r: {
        "lora_up.weight": r(o, 4).bfloat16(), "lora_down.weight": r(4, i).bfloat16(), "alpha": torch.tensor(3.0).bfloat16()},
    "lora of many ranks": lambda o, i, r: {
        "lora_up.weight": r(o, rank := 1 + int(8 * r(1).abs())), "lora_down.weight": r(rank, i), "alpha": torch.tensor(3.0)},
    "lora in older words": lambda o, i, r: {"lora.up.weight": r(o, 4), "lora.down.weight": r(4, i)},
    "loha": lambda o, i, r: {
        "hada_w1_a": r(o, 3), "hada_w1_b": r(3, i), "hada_w2_a": r(o, 3), "hada_w2_b": r(3, i), "alpha": torch.tensor(2.0)},
    "lokr, full": lambda o, i, r: {"lokr_w1": r(4, 4), "lokr_w2": r(o // 4, i // 4), "alpha": torch.tensor(5.0)},
    "lokr, w2 factored": lambda o, i, r: {
        "lokr_w1": r(4, 4), "lokr_w2_a": r(o // 4, 2), "lokr_w2_b": r(2, i // 4), "alpha": torch.tensor(3.0)},
    "lokr, w1 factored": lambda o, i, r: {
        "lokr_w1_a": r(8, 2), "lokr_w1_b": r(2, 8), "lokr_w2": r(o // 8, i // 8), "alpha": torch.tensor(3.0)},
    "lokr, both factored": lambda o, i, r: {
        "lokr_w1_a": r(8, 1), "lokr_w1_b": r(1, 8), "lokr_w2_a": r(o // 8, 2), "lokr_w2_b": r(2, i // 8), "alpha": torch.tensor(3.0)},
    "full difference": lambda o, i, r: {"diff": 0.3 * r(o, i)},
}  # fmt: skip
# The same for the convolution patch_embedding, of shape (o, i, 1, 2, 2). ComfyUI takes the core of a Tucker decomposition, and the
# kernel of a LoKr's w2, with two dimensions only, of which the model's own three are made by reshaping.
CONVOLUTIONS = {
    "lora, convolution": lambda o, i, r: {"lora_up.weight": r(o, 2, 1, 1, 1), "lora_down.weight": r(2, i, 1, 2, 2), "alpha": torch.tensor(1.0)},
    "lora, flat convolution": lambda o, i, r: {"lora_up.weight": r(o, 2), "lora_down.weight": r(2, 4 * i), "alpha": torch.tensor(1.0)},
    "lora_mid, convolution": lambda o, i, r: {
        "lora_up.weight": r(o, 2, 1, 1), "lora_mid.weight": r(2, 2, 2, 2), "lora_down.weight": r(2, i, 1, 1), "alpha": torch.tensor(1.0)},
    "loha, flat convolution": lambda o, i, r: {
        "hada_w1_a": r(o, 2), "hada_w1_b": r(2, 4 * i), "hada_w2_a": r(o, 2), "hada_w2_b": r(2, 4 * i), "alpha": torch.tensor(1.0)},
    "loha, Tucker": lambda o, i, r: {
        "hada_t1": r(2, 2, 2, 2), "hada_w1_a": r(2, o), "hada_w1_b": r(2, i),
        "hada_t2": r(2, 2, 2, 2), "hada_w2_a": r(2, o), "hada_w2_b": r(2, i), "alpha": torch.tensor(1.0)},
    "lokr, convolution": lambda o, i, r: {"lokr_w1": r(4, 2), "lokr_w2": r(o // 4, i // 2, 2, 2)},
    "lokr, flat convolution": lambda o, i, r: {
        "lokr_w1": r(4, 2), "lokr_w2_a": r(o // 4, 2), "lokr_w2_b": r(2, 2 * i), "alpha": torch.tensor(1.0)},
    "lokr, Tucker": lambda o, i, r: {
        "lokr_w1": r(4, 2), "lokr_t2": r(2, 2, 2, 2), "lokr_w2_a": r(2, o // 4), "lokr_w2_b": r(2, i // 2), "alpha": torch.tensor(1.0)},
    "full difference, convolution": lambda o, i, r: {"diff": r(o, i, 1, 2, 2)},
}  # fmt: skip
# Others than kohya's names, where ComfyUI has none of those for a form.
PREFIX = {"lora without alpha": "diffusion_model.", "lora in older words": "diffusion_model."}
MIXED = {"self_attn": "lora", "cross_attn.q": "loha", "cross_attn": "lokr, w2 factored", "ffn": "full difference"}


def random(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.4 * torch.randn(shape, generator=generator)


def parts(kind, name, shape, numbers):
    prefix = PREFIX.get(kind, "lora_unet_")
    key = prefix + (name if prefix.endswith(".") else name.replace(".", "_"))
    return {f"{key}.{part}": value for part, value in {**FORMS, **CONVOLUTIONS}[kind](*shape, numbers).items()}


def vectors(model):
    """Differences of biases, norms and modulations, in the native names: only those reach a modulation."""
    stored, numbers = {}, random(6)
    for name, value in load_file(model).items():
        if name.startswith("blocks.") and (name.endswith(("bias", "modulation")) or "norm" in name):
            module = name.removesuffix(".weight").removesuffix(".bias")
            stored[f"diffusion_model.{module}.{'diff_b' if name.endswith('bias') else 'diff'}"] = numbers(*value.shape)
    return stored


def norms(model):
    """The same for norms with LyCORIS's words."""
    stored, numbers = {}, random(7)
    for name, value in load_file(model).items():
        if "norm3" in name:
            module, _, last = name.rpartition(".")
            stored[f"lora_unet_{module.replace('.', '_')}.{last[0]}_norm"] = numbers(*value.shape)
    return stored


def original(folder, kind, model):
    """A LoRA file for a model, as others write that kind."""
    numbers = random(4)
    layers = [layer for layer in small_models.linear_layers(model) if layer[0].startswith("blocks.")]
    if kind == "mixed":
        forms = [(next(form for part, form in MIXED.items() if part in name), name, shape) for name, shape in layers]
        stored = {key: value for each in forms for key, value in parts(*each, numbers).items()} | vectors(model)
    else:
        form = kind if kind in FORMS else "lora"
        stored = {key: value for layer in layers for key, value in parts(form, *layer, numbers).items()}
        if kind in CONVOLUTIONS:
            stored |= parts(kind, "patch_embedding", load_file(model)["patch_embedding.weight"].shape[:2], numbers)
        elif kind == "biases, norms, modulation":
            stored |= vectors(model)
        elif kind == "w_norm and b_norm":
            stored |= norms(model)
    save_file(stored, folder / f"{kind}.safetensors")
    return folder / f"{kind}.safetensors"


ORIGINALS = (*FORMS, *CONVOLUTIONS, "biases, norms, modulation", "w_norm and b_norm", "mixed")


# --- What a model's weights should be -------------------------------------------------------------------------------


def expected(model, lora, chosen=lambda name: True):
    """The model's parameters with the changes in them, in float64."""
    truth = {name: value.double() for name, value in load_file(model).items()}
    for name in filter(chosen, lora):
        module, _, last = name.rpartition(".")
        own = f"{module}.bias" if last == "bias" else name if name in truth else f"{name}.weight"
        truth[own] = truth[own] + STRENGTH * lora[name].dense(torch.float64).view(truth[own].shape)
    return truth


def same(found, truth, model, tables=False):
    """tables: whether modulation tables must have changed. Both readers take their keys, but not every version patches what hangs
    on a block itself. Our sliders do, or say so."""
    assert set(truth) <= set(found)
    stored = load_file(model)
    for name, value in truth.items():
        if name.endswith("modulation") and not tables and torch.equal(found[name], stored[name]):
            continue
        error = (found[name].double() - value).abs().max() / value.abs().max()
        assert error < 2e-6, f"{name}: off by {error:.1e} of its largest value"


def same_or_left(comfy, found, truth, model, kind):
    """ComfyUI cannot multiply out a LoKr with a core, with some versions of torch: it logs an error and leaves the weight as it is."""
    if kind == "lokr, Tucker" and f"ERROR lokr diffusion_model.{PATCH}" in comfy.log:
        truth = truth | {PATCH: load_file(model)[PATCH].double()}
    same(found, truth, model)


def changed(truth, model):
    """How many parameters differ from the model's own: none would make a comparison worthless."""
    stored = load_file(model)
    return sum(not torch.equal(value, stored[name].double()) for name, value in truth.items())


def placed(comfy, file, name):
    """The file under a name of its own among the server's LoRAs: ComfyUI keeps what it has loaded by name."""
    return shutil.copy(file, comfy.models("loras") / f"{name}.safetensors")


def through_comfyui(comfy, file, name):
    comfy.run({
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "lora": node("LoraLoaderModelOnly", model=["model", 0], lora_name=file.name, strength_model=STRENGTH),
        "save": node("TestSaveParameters", model=["lora", 0], name=name),
    })  # fmt: skip
    return load_file(comfy.base / f"output/{name}.safetensors")


def through_slider(comfy, file, name, apply):
    comfy.run({
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "lora": node("DiffLoraLoad", lora_name=file.name),
        "slider": node("DiffLoraSliderModel", model=["model", 0], lora=["lora", 0], strength=STRENGTH, apply=apply),
        "save": node("TestSaveParameters", model=["slider", 0], name=name),
    })  # fmt: skip
    return load_file(comfy.base / f"output/{name}.safetensors")


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


# --- Written by others, read by us and by them ----------------------------------------------------------------------


@cells(ORIGINALS, ["as others write it"], "difflora and ComfyUI")
def test_comfyui_and_we_mean_the_same_by_a_file(comfy, tmp_path, kind, writer):
    model = comfy.models("diffusion_models") / small_models.WAN
    file = placed(comfy, original(tmp_path, kind, model), f"original {kind}")
    truth = expected(model, difflora.load(file))
    assert changed(truth, model) >= 30
    same_or_left(comfy, through_comfyui(comfy, file, "theirs"), truth, model, kind)
    same(through_slider(comfy, file, "ours", "patch"), truth, model, tables=True)


@cells(CONVOLUTIONS, ["as others write it"], "slider beside the weights")
def test_a_convolution_goes_into_the_weights_beside_which_a_slider_is(comfy, tmp_path, kind, writer):
    model = comfy.models("diffusion_models") / small_models.WAN
    file = placed(comfy, original(tmp_path, kind, model), f"beside {kind}")
    lora = difflora.load(file)
    found = through_slider(comfy, file, "beside", "bypass")
    same(found, expected(model, lora, lambda name: name == "patch_embedding"), model)


@cells(ORIGINALS, ["as others write it"], "difflora and WanVideoWrapper")
def test_the_wrapper_and_we_mean_the_same_by_a_file(comfy, wrapper, tmp_path, kind, writer):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    file = placed(comfy, original(tmp_path, kind, model), f"wrapper {kind}")
    truth = expected(model, difflora.load(file))
    assert changed(truth, model) >= 300
    same_or_left(comfy, through_wrapper(comfy, file, "theirs"), truth, model, kind)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr, full"])
def test_dora_is_refused_though_comfyui_takes_it(comfy, tmp_path, kind):
    model = comfy.models("diffusion_models") / small_models.WAN
    stored = load_file(original(tmp_path, kind, model))
    name, (rows, _) = small_models.linear_layers(model)[0]
    stored[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = torch.ones(rows, 1)
    save_file(stored, tmp_path / "dora.safetensors")
    with pytest.raises(difflora.DiffLoraError, match="DoRA"):
        difflora.load(tmp_path / "dora.safetensors")


# --- Written by ComfyUI ---------------------------------------------------------------------------------------------


def extracted(comfy, source, lora_type):
    """ComfyUI's "Extract and Save Lora", on the difference of a model with a LoRA and the model."""
    comfy.run({
        "model": node("UNETLoader", unet_name=small_models.WAN, weight_dtype="default"),
        "tuned": node("LoraLoaderModelOnly", model=["model", 0], lora_name=source.name, strength_model=1.0),
        "difference": node("ModelMergeSubtract", model1=["tuned", 0], model2=["model", 0], multiplier=1.0),
        "save": node("LoraSave", filename_prefix=f"extracted/{lora_type}", rank=6, lora_type=lora_type, bias_diff=True,
                     model_diff=["difference", 0]),
    })  # fmt: skip
    return newest(comfy.base / "output/extracted", lora_type)


def trained(comfy, algorithm):
    """Two steps of ComfyUI's own trainer, and its "Save LoRA Weights"."""
    prompt = Native().prompt
    outputs = comfy.object_info("TrainLoraNode")["output"]
    settings = {
        "batch_size": 1, "grad_accumulation_steps": 1, "steps": 2, "learning_rate": 0.05, "rank": 4, "optimizer": "AdamW",
        "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": algorithm,
        "gradient_checkpointing": False, "existing_lora": "[None]",
    }  # fmt: skip
    wanted = comfy.object_info("TrainLoraNode")["input"]["required"]
    settings |= {
        name: rest[0]["default"]
        for name, (_, *rest) in wanted.items()
        if name not in settings and rest and "default" in rest[0]
    }
    prompt["empty"]["inputs"]["batch_size"] = 2
    prompt["each"] = node("RebatchLatents", latents=["empty", 0], batch_size=1)  # 0.3.75 trains on lists only
    prompt["train"] = node("TrainLoraNode", model=["model", 0], latents=["each", 0], positive=["text", 0], **settings)
    prompt["save"] = node(
        "SaveLoRA", lora=["train", outputs.index("LORA_MODEL")], prefix=f"trained/{algorithm}", steps=2
    )
    comfy.run(prompt)
    return newest(comfy.base / "output/trained", algorithm)


def newest(folder, name):
    return max(folder.glob(f"{name}*.safetensors"), key=lambda file: file.stat().st_mtime)


COMFYUI = {
    "lora-ComfyUI's extraction": lambda comfy, source: extracted(comfy, source, "standard"),
    "full difference-ComfyUI's extraction": lambda comfy, source: extracted(comfy, source, "full_diff"),
    "lora-ComfyUI's trainer": lambda comfy, source: trained(comfy, "LoRA"),
    "loha-ComfyUI's trainer": lambda comfy, source: trained(comfy, "LoHa"),
    "lokr-ComfyUI's trainer": lambda comfy, source: trained(comfy, "LoKr"),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"{kind}-difflora and ComfyUI") for kind in COMFYUI])
def test_we_read_what_comfyui_writes(comfy, tmp_path, kind):
    model = comfy.models("diffusion_models") / small_models.WAN
    source = placed(comfy, original(tmp_path, "mixed", model), f"source of {kind}")
    file = placed(comfy, COMFYUI[kind](comfy, source), f"by {kind}")
    truth = expected(model, difflora.load(file))
    assert changed(truth, model) >= 30
    same(through_slider(comfy, file, "ours", "patch"), truth, model, tables=True)
    if kind == "lokr-ComfyUI's trainer" and load_file(file)["diffusion_model.patch_embedding.lokr_w2"].ndim == 5:
        # 0.33 trains a kernel of three dimensions by LyCORIS's product, but its loader takes the factors for ones of like dimensions.
        del truth[PATCH]
    same(through_comfyui(comfy, file, "theirs"), truth, model)


# --- Written by us, read by them ------------------------------------------------------------------------------------


def outside(folder, model):
    """Layers before and after the blocks, too."""
    return small_models.write_lora(folder / "outside.safetensors", model, modules=r"blocks|head|time|text")


def rslora(folder, model):
    """As PEFT's configuration says it, which diffusers keeps in the file."""
    stored = load_file(small_models.write_lora(folder / "factors.safetensors", model, dialect="peft"))
    config = {"lora_alpha": 2, "r": 4, "use_rslora": True}
    save_file(stored, folder / "rslora.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    return folder / "rslora.safetensors"


def loaded(kind):
    return lambda folder, model: difflora.load(original(folder, kind, model))


def reranked(kind, rank=6):
    return lambda folder, model: difflora.rerank(loaded(kind)(folder, model), difflora.FixedRank(rank))


KINDS = {
    "lora": loaded("lora"),
    "attention only": lambda folder, model: loaded("lora")(folder, model).select("attn"),
    "outside the blocks": lambda folder, model: difflora.load(outside(folder, model)),
    "rslora": lambda folder, model: difflora.load(rslora(folder, model)),
    "loha": loaded("loha"),
    "lokr": loaded("lokr, w2 factored"),
    "lokr, full": loaded("lokr, full"),
    "loha minus lora, re-ranked": lambda folder, model: difflora.rerank(
        difflora.subtract(loaded("loha")(folder, model), loaded("lora")(folder, model)), difflora.FixedRank(4)),
    "lokr, re-ranked": reranked("lokr, full"),
    "biases, norms, modulation": loaded("biases, norms, modulation"),
    "full difference": loaded("full difference"),
    "full difference, re-ranked": reranked("full difference"),
    "lora, convolution": loaded("lora, convolution"),
    "lora, flat convolution": loaded("lora, flat convolution"),
    "lora_mid, convolution": loaded("lora_mid, convolution"),
    "lokr, convolution": loaded("lokr, convolution"),
    "flat minus full convolution": lambda folder, model: difflora.subtract(
        loaded("lora, flat convolution")(folder, model), loaded("full difference, convolution")(folder, model)),
    "mixed": loaded("mixed"),
    "mixed, re-ranked": reranked("mixed"),
}  # fmt: skip
OURS = {f"difflora's {dialect} names": dialect for dialect in OUTPUT_DIALECTS}
READABLE = [writer for writer, dialect in OURS.items() if dialect in ("native", "kohya")]


def written(comfy, lora, kind, writer):
    return difflora.save(
        lora, comfy.models("loras") / f"{kind} by {writer}.safetensors", dialect=OURS[writer], overwrite=True
    )


@cells(KINDS, READABLE, "ComfyUI")
def test_comfyui_reads_what_we_write(comfy, tmp_path, kind, writer):
    model = comfy.models("diffusion_models") / small_models.WAN
    lora = KINDS[kind](tmp_path, model)
    same(through_comfyui(comfy, written(comfy, lora, kind, writer), "read"), expected(model, lora), model)


@cells(KINDS, READABLE, "WanVideoWrapper")
def test_the_wrapper_reads_what_we_write(comfy, wrapper, tmp_path, kind, writer):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    lora = KINDS[kind](tmp_path, model)
    same(through_wrapper(comfy, written(comfy, lora, kind, writer), "read"), expected(model, lora), model)


def test_the_wrappers_block_filter_picks_from_the_default_dialect(comfy, wrapper, tmp_path):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    lora = loaded("mixed")(tmp_path, model)
    file = difflora.save(lora, comfy.models("loras") / "filtered.safetensors", overwrite=True)
    found = through_wrapper(comfy, file, "filtered", blocks=["filter", 0])
    same(found, expected(model, lora, lambda name: int(name.split(".")[1]) in FILTER), model)


# --- What they cannot read: two dialects are for the libraries from PyPI ----------------------------------------------


@cells(["lora"], [writer for writer in OURS if writer not in READABLE], "ComfyUI, which loads nothing")
def test_comfyui_has_no_such_names_for_wan(comfy, tmp_path, kind, writer):
    model = comfy.models("diffusion_models") / small_models.WAN
    lora = KINDS[kind](tmp_path, model)
    found = through_comfyui(comfy, written(comfy, lora, kind, writer), "read")
    same(found, expected(model, lora, lambda name: False), model)
    assert "lora key not loaded" in comfy.log


def test_the_wrapper_takes_diffusers_self_attention_for_cross_attention(comfy, wrapper, tmp_path):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    lora = loaded("lora")(tmp_path, model)
    file = written(comfy, lora, "lora", "difflora's diffusers names")
    found = through_wrapper(comfy, file, "read")
    same(found, expected(model, lora, lambda name: "cross_attn" in name), model)


def test_the_wrapper_takes_every_peft_file_with_block_0s_cross_attention_for_an_rslora(comfy, wrapper, tmp_path):
    model = comfy.models("diffusion_models") / small_models.WAN_WRAPPER
    whole = loaded("lora")(tmp_path, model)
    rest = whole.select("!blocks 0")
    for lora, meant in ((whole, whole.scaled(2.0)), (rest, rest)):  # √4, the rank
        file = written(comfy, lora, f"lora of {len(lora)}", "difflora's peft names")
        same(through_wrapper(comfy, file, "read"), expected(model, meant), model)
