"""Every family in every spelling, through the pack and into ComfyUI's own models, as JSON, one line a model.

model -> {"keys": what comfyui_keys.py says of it, "cells": spelling -> [modules, read, selected, on the slider, read back]}.
A last line, "beside", is comfyui_fused.py's. Runs in ComfyUI's own Python, from its folder:
``python comfyui_families.py FOLDER [MODEL …]``; FOLDER is for the files. The models are built without memory.
"""

import functools
import importlib
import json
import logging
import re
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
for package, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):  # not nodes/__init__.py: it wants a server
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(folder)]
sys.modules["server"] = types.SimpleNamespace(PromptServer=None)  # nothing here talks to a page

FOLDER, ONLY = Path(sys.argv[1]), sys.argv[2:]
del sys.argv[1:]

FAMILY_OF = importlib.import_module("comfyui_models").FAMILY_OF
comfyui_keys = importlib.import_module("comfyui_keys")  # puts ComfyUI on the path instead of this folder
sys.path.append(str(Path(__file__).parent))

import comfy.lora  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

difflora = importlib.import_module("pack.difflora")
families = importlib.import_module("pack.difflora.names.families")
keys = importlib.import_module("pack.difflora.names.keys")
cut = importlib.import_module("pack.difflora.lora.pieces").cut
native_slider = importlib.import_module("pack.nodes.slider.native")
has_branches = importlib.import_module("pack.nodes.slider.branches").has_branches
logging.disable(logging.WARNING)

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
RANK = 1


def flat(prefix):
    return lambda name: prefix + name.replace(".", "_")


# spelling -> the dialect whose names it has, what stands before them, and what the factors are called.
SPELLINGS = {
    "native": ("native", None, (DOWN, UP)),
    "ai-toolkit, diffusion-pipe": ("own", "diffusion_model.{}".format, (".lora_A.weight", ".lora_B.weight")),
    "kohya, musubi": ("kohya", None, (DOWN, UP)),
    "diffusers": ("diffusers", None, (".lora_A.weight", ".lora_B.weight")),
    "PEFT": ("peft", None, (".lora_A.weight", ".lora_B.weight")),
    "OneTrainer": ("their", flat("lora_transformer_"), (DOWN, UP)),
    "LyCORIS": ("their", flat("lycoris_"), (DOWN, UP)),
    "DiffSynth": ("own", "{}".format, (".lora_A.default.weight", ".lora_B.default.weight")),
}


def chosen(model):
    """The matrices in the last block of every stack, and outside of them: the shape of each, by name."""
    matrices = {
        name.removeprefix("diffusion_model.").removesuffix(".weight"): tuple(weight.shape)
        for name, weight in model.named_parameters()
        if name.endswith(".weight") and weight.ndim == 2
    }
    last: dict[str, int] = {}
    at = {name: families.own(name) for name in matrices}
    for own, numbers in at.values():
        if own.stack and numbers:
            last[own.stack] = max(last.get(own.stack, 0), int(numbers[-1]))
    return {
        name: shape
        for name, shape in matrices.items()
        if not at[name][0].stack or not at[name][1] or int(at[name][1][-1]) == last[at[name][0].stack]
    }


def change(shapes, seed):
    random = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rows, RANK, generator=random), torch.randn(RANK, columns, generator=random))
        for name, (rows, columns) in shapes.items()
    }


def spelled(factors, family, spelling):
    """The tensors of a file in this spelling."""
    dialect, prefix, (down_end, up_end) = SPELLINGS[spelling]
    tensors = {}
    for name, (up, down) in factors.items():
        if dialect in ("own", "their"):
            code = families.OWN if dialect == "own" else families.DIFFUSERS
            parts = [(prefix(one.name), one.rows) for one in families.in_code(name, family, code)]
        else:
            parts = [(one.name, one.rows) for one in keys.written(name, dialect, family)]
        if spelling == "DiffSynth" and (
            own := families.layout(family, "diffsynth").get(families.own(name)[0].template)
        ):
            parts = [(name, tuple((link.own_rows, link.their_rows) for link in own.links))]
        for their, rows in parts:
            tensors[their + up_end] = cut(up, rows)
            tensors[their + down_end] = down.clone()
    return tensors


@functools.cache
def random_columns(size):
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def close(up, down, scale, truth):
    """Whether scale · up @ down is the sum of the products in `truth`, on three random columns."""
    probe = random_columns(down.shape[1])
    is_ = scale * (up.double() @ (down.double() @ probe))
    should = sum(sign * (u.double() @ (d.double() @ probe)) for sign, u, d in truth)
    return is_.shape == should.shape and bool(torch.linalg.norm(is_ - should) <= 1e-4 * torch.linalg.norm(should))


def on_the_slider(patcher, lora, factors):
    """How many modules the slider node changes as they should, patched as well as beside the weights."""
    targets = native_slider.Targets(patcher, lora)
    patched = native_slider.applied(patcher, lora, targets, 1.0, bypass=False).patches
    beside = native_slider.applied(patcher, lora, targets, 1.0, bypass=True)
    injected = [one for some in beside.injections.values() for one in some]
    for one in injected:
        one.inject(beside)
    deltas = {path: delta for one in injected for path, delta in one.inject.__self__._deltas.items()}
    right = 0
    for name, pair in factors.items():
        path = f"diffusion_model.{name}"
        if isinstance(comfy.utils.get_attr(patcher.model, path), torch.nn.Embedding):  # has no place beside it
            is_beside = adds(beside.patches[f"{path}.weight"], pair)
        else:
            terms = deltas[path].terms
            is_beside = has_branches(comfy.utils.get_attr(patcher.model, path)) and is_sum_of(terms, pair)
        right += is_beside and adds(patched.get(f"{path}.weight", []), pair)
    for one in injected:
        one.eject(beside)
    return right


def is_sum_of(terms, pair):
    """Whether these terms add up to the product of a pair (up, down)."""
    ups = torch.cat([term.scale * term.up for term in terms], 1)
    return close(ups, torch.cat([term.down for term in terms]), 1.0, [(1, *pair)])


def adds(patches, pair):
    """Whether what ComfyUI would add to a weight is that product."""
    ups, downs = [], []
    for strength, adapter, _, offset, function in patches:
        up, down, alpha = adapter.weights[:3]
        if offset or function:
            return False
        ups.append(strength * (1.0 if alpha is None else alpha / down.shape[0]) * up)
        downs.append(down)
    return bool(ups) and close(torch.cat(ups, 1), torch.cat(downs), 1.0, [(1, *pair)])


def cell(patcher, family, factors, others, native, spelling, comfyui):
    path = FOLDER / "a.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in spelled(factors, family, spelling).items()},
        path,
        # What a trainer writes: without it, a few modules of Flux.1 and of FLUX.2 cannot be told apart.
        {"modelspec.architecture": family.words[0]},
    )
    lora = difflora.load(path)
    read = sum(name in lora and is_sum_of(lora[name].terms, pair) for name, pair in factors.items())
    # By role, and by the block of each stack that has a name for it.
    stacks = sorted({own.stack for name in factors if "#" not in (own := families.own(name)[0]).stack} - {""})
    wanted = {"attn | ffn": {name for name in factors if families.own(name)[0].roles & {"attn", "ffn"}}}
    wanted |= {
        f"{stack} 0-": {name for name in factors if re.match(rf"{re.escape(stack)}\.\d", name)} for stack in stacks
    }
    picked = [set(lora.select(expression)) == names for expression, names in wanted.items() if names]
    slider = on_the_slider(patcher, lora, factors)
    small = difflora.rerank(difflora.subtract(lora, native), difflora.FixedRank(4))
    out = difflora.save(small, FOLDER / "out.safetensors", overwrite=True)
    patches = comfy.lora.load_lora(load_file(out), comfyui, log_missing=False)
    back = 0
    for key, adapter in patches.items():
        name = (key if isinstance(key, str) else key[0]).removeprefix("diffusion_model.").removesuffix(".weight")
        up, down, alpha = adapter.weights[:3]
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        back += isinstance(key, str) and close(up, down, scale, [(1, *factors[name]), (-1, *others[name])])
    return [len(factors), read, len(factors) if all(picked) else sum(picked), slider, back]


def run(name, model):
    model.manual_cast_dtype, model.device = None, torch.device("cpu")
    model.get_dtype = lambda: torch.float32
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    shapes = chosen(model)
    family = families.named(FAMILY_OF[name])
    factors, others = change(shapes, 1), change(shapes, 2)
    path = FOLDER / "b.safetensors"
    save_file(spelled(others, family, "native"), path, {"modelspec.architecture": family.words[0]})
    native = difflora.load(path)
    # Its loader goes through all names for each; those of other blocks are not in the file.
    weights = {f"diffusion_model.{module}.weight" for module in shapes}
    comfyui = {
        key: target
        for key, target in comfy.lora.model_lora_keys_unet(model, {}).items()
        if (target if isinstance(target, str) else target[0]) in weights
    }
    cells = {}
    for spelling in SPELLINGS:
        try:
            cells[spelling] = cell(patcher, family, factors, others, native, spelling, comfyui)
        except difflora.errors.DiffLoraError as error:
            cells[spelling] = str(error)
    return cells


def main():
    torch.set_grad_enabled(False)
    for name, settings in comfyui_keys.MODELS.items():
        if ONLY and name not in ONLY:
            continue
        try:
            model = comfyui_keys.build(*settings)
        except (ImportError, AttributeError) as error:
            print(f"{name}: not in this ComfyUI ({error})", file=sys.stderr)
            continue
        print(json.dumps({name: {"keys": comfyui_keys.describe(model), "cells": run(name, model)}}), flush=True)
    if not ONLY:
        print(json.dumps({"beside": importlib.import_module("comfyui_fused").on_parts(FOLDER)}), flush=True)


main()
