"""Opens models of every precision for training, in a process of its own with ComfyUI's modules; prints JSON.

    COMFYUI_DIR=… python tests/training_wire.py FOLDER

In one process with ComfyUI this repository's `nodes` would hide ComfyUI's, so it is imported here as a part of "pack".
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def module(name: str, path: Path) -> types.ModuleType:
    """A module, or the beginning of a package, under a name of its own."""
    if path.is_dir():
        made = types.ModuleType(name)
        made.__path__ = [str(path)]  # type: ignore[attr-defined]
        sys.modules[name] = made
        return made
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


sys.path[0] = os.environ["COMFYUI_DIR"]
import comfy.options  # noqa: E402

comfy.options.args_parsing = False
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

for package, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
    module(package, folder)
from pack.difflora.errors import UnsupportedError  # type: ignore[import-not-found] # noqa: E402
from pack.difflora.training.latents import SliderPairs  # type: ignore[import-not-found] # noqa: E402
from pack.difflora.training.slider import Settings, SliderTrainer  # type: ignore[import-not-found] # noqa: E402
from pack.nodes.training import wire  # type: ignore[import-not-found] # noqa: E402

small_models = module("small_models", ROOT / "tests" / "small_models.py")
SHAPE = (16, 1, 6, 6)
Weights = dict[str, torch.Tensor]
GGUF = os.environ.get("COMFYUI_GGUF_DIR")


def variants(weights: Weights, linear: set[str]) -> Iterator[tuple[str, Weights, dict[str, Any]]]:
    """Name, file and options of a model in each precision."""
    fp8 = torch.float8_e4m3fn
    yield "float32", weights, {}
    yield "bf16", {key: value.bfloat16() for key, value in weights.items()}, {}
    yield "fp16", {key: value.half() for key, value in weights.items()}, {}
    yield "fp8", {key: value.to(fp8) if key in linear else value.half() for key, value in weights.items()}, {}
    yield "cast to fp8", weights, {"dtype": fp8}
    yield "fp8_fast", weights, {"dtype": fp8, "fp8_optimizations": True}
    scaled: Weights = {"scaled_fp8": torch.zeros(0, dtype=fp8)}
    for key, value in weights.items():
        scaled[key] = value.half()
        if key in linear:
            scale = value.abs().max() / 448
            scaled[key] = (value / scale).to(fp8)
            scaled[key.replace(".weight", ".scale_weight")] = scale.float()
    yield "scaled fp8", scaled, {}


def gguf_models(folder: Path, weights: Weights, linear: set[str]) -> Iterator[tuple[str, Any]]:
    """The model in GGUF's precisions, as ComfyUI-GGUF loads it; nothing without that pack and the package `gguf`."""
    if not GGUF:
        return
    import gguf  # type: ignore[import-untyped]

    spec = importlib.util.spec_from_file_location(
        "gguf_pack", Path(GGUF, "__init__.py"), submodule_search_locations=[GGUF]
    )
    assert spec and spec.loader
    pack = importlib.util.module_from_spec(spec)
    sys.modules["gguf_pack"] = pack
    spec.loader.exec_module(pack)
    nodes = sys.modules["gguf_pack.nodes"]
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
        path = folder / f"{kind.name}.gguf"
        file = gguf.GGUFWriter(path, "wan")
        for key, value in weights.items():
            numbers = value.float().numpy()
            if key in linear:
                file.add_tensor(key, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
                continue
            if numbers.ndim > 4:  # GGUF has four dimensions at most
                file.add_array(f"comfy.gguf.orig_shape.{key}", list(numbers.shape))
                numbers = numbers.reshape(*numbers.shape[:2], -1, numbers.shape[-1])
            file.add_tensor(key, numbers.astype("float16") if numbers.ndim == 2 else numbers)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        read = nodes.gguf_sd_loader(str(path))
        tensors = read[0] if isinstance(read, tuple) else read
        options = {"custom_operations": nodes.GGMLOps()}
        patcher = comfy.sd.load_diffusion_model_state_dict(tensors, model_options=options)
        yield f"gguf {kind.name}", nodes.GGUFModelPatcher.clone(patcher)


def refusals(text: torch.Tensor) -> dict[str, str]:
    """What is said about models that cannot be trained on. Theirs are ComfyUI's own classes."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    vace = {
        "image_model": "wan2.1", "model_type": "vace", "dim": 96, "ffn_dim": 96, "num_heads": 2, "num_layers": 2,
        "in_dim": 16, "out_dim": 16, "vace_layers": 1, "vace_in_dim": 96,
    }  # fmt: skip
    models = {
        "SDXL": comfy.model_base.SDXL(
            comfy.supported_models.SDXL({"disable_unet_model_creation": True, "adm_in_channels": 2816})
        ),
        "VACE": comfy.supported_models.WAN21_Vace(vace).get_model({}),
    }
    said = {}
    for name, model in models.items():
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        try:
            with wire.opened(patcher, [[text, {}]], SHAPE, 0, lambda: None):
                said[name] = "taken"
        except UnsupportedError as error:
            said[name] = str(error)
    return said


def slope(trainer: Any) -> float:
    """The loss's slope by central differences over the gradient's, at random factors: 1 when the gradient is right."""
    random = torch.Generator().manual_seed(1)
    parameters = trainer.factors.parameters()
    for parameter in parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
        parameter.grad = None
    with torch.enable_grad():
        trainer.loss(trainer.draws.at(0)).backward()
    directions = [parameter.grad / parameter.grad.norm() for parameter in parameters]
    computed = sum(float((d * p.grad).sum()) for d, p in zip(directions, parameters, strict=True))
    losses = []
    with torch.no_grad():
        for length in (1e-2, -2e-2):  # to one side, then from there to the other
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data += length * direction
            losses.append(float(trainer.loss(trainer.draws.at(0))))
    return (losses[0] - losses[1]) / 2e-2 / computed


def kept_bytes(trainer: Any) -> int:
    """What autograd keeps between forward and backward."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        try:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        except RuntimeError:  # ComfyUI's quantised tensors have no storage of their own
            sizes[id(tensor)] = tensor.nbytes
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.loss(trainer.draws.at(0))
    return sum(sizes.values())


def look(patcher: Any, pairs: Any, text: torch.Tensor) -> dict[str, Any]:
    """Everything that a test asks about one model."""
    model = patcher.model
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3))

    def predicted() -> torch.Tensor:
        comfy.model_management.load_models_gpu([patcher])
        return model.apply_model(noise, torch.tensor([0.8]), c_crossattn=text)

    before, parameters = predicted(), dict(model.named_parameters())
    buffers, rng = dict(model.named_buffers()), torch.get_rng_state()
    forwards = {name: vars(part).get("forward") for name, part in model.named_modules()}
    found: dict[str, Any] = {"inference": any(parameter.is_inference() for parameter in parameters.values())}
    layers = wire.chosen_layers(model, "attn")
    with wire.opened(patcher, [[text, {}]], SHAPE, 0, lambda: None) as opened:
        latents = opened.latents_in(pairs)
        found["latents"] = torch.equal(latents.a[0], model.process_latent_in(pairs.a[0][None])[0])
        trainer = SliderTrainer(
            Settings(rank=2, batch=2, learning_rate=1e-3), latents, opened.velocity,
            {layer.name: layer.module for layer in layers}, {layer.name: layer.shape for layer in layers},
        )  # fmt: skip
        with torch.no_grad():
            plain = model.diffusion_model(noise.to(opened.model.manual_cast_dtype or model.get_dtype()),
                                          torch.tensor([800.0]), context=text.clone())  # fmt: skip
            found["velocity"] = float((opened.velocity(noise, torch.tensor([0.8])) - plain.float()).abs().max())
        with trainer.factors.attached():
            trainer.check_gradient()
            found["slope"] = slope(trainer)
            found["kept"] = kept_bytes(trainer)
            trainer.step()
    found["same"] = bool(torch.equal(before, predicted()))
    found["restored"] = (
        all(parameters[name] is parameter for name, parameter in model.named_parameters())
        and all(buffers[name] is buffer for name, buffer in model.named_buffers())
        and all(vars(part).get("forward") is forwards[name] for name, part in model.named_modules())
        and not any(part._forward_hooks for part in model.modules())
        and not getattr(comfy.model_management, "in_training", False)
    )
    found["random"] = bool(torch.equal(rng, torch.get_rng_state()))
    checkpointed = wire.checkpointed
    wire.checkpointed = lambda blocks, tick: checkpointed((), tick)
    try:
        with wire.opened(patcher, [[text, {}]], SHAPE, 0, lambda: None), trainer.factors.attached():
            found["kept without checkpoints"] = kept_bytes(trainer)
    finally:
        wire.checkpointed = checkpointed
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    base = small_models.write_wan(folder / "base.safetensors")
    weights = load_file(base)
    linear = {f"{name}.weight" for name, _ in small_models.linear_layers(base) if name.startswith("blocks.")}
    random = torch.Generator().manual_seed(0)
    sides = [tuple(torch.randn(SHAPE, generator=random) for _ in range(2)) for _ in range(2)]
    pairs = SliderPairs(("0", "1"), *sides)
    answers: dict[str, Any] = {}
    with torch.inference_mode():  # as ComfyUI runs nodes
        text = torch.randn(1, 8, 4096, generator=random)
        for name, tensors, options in variants(weights, linear):
            path = folder / "variant.safetensors"
            save_file(tensors, path)
            answers[name] = look(comfy.sd.load_diffusion_model(str(path), model_options=options), pairs, text)
        for name, patcher in gguf_models(folder, weights, linear):
            answers[name] = look(patcher, pairs, text)
        answers["refused"] = refusals(text)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
