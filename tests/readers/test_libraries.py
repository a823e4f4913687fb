"""The libraries that others read and write LoRAs with, against ours: the same file must mean the same weights.

Every test is a cell of a table, kind × writer × reader: `pytest tests/readers -v` prints it. What is compared are merged weights, in
float64; the libraries' own arithmetic is float32. ComfyUI and WanVideoWrapper are in tests/e2e/test_readers.py. What a library cannot
read is a cell as well: it says so, or changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import difflora
from difflora import FixedRank
from difflora.lora.file import FileLora
from difflora.names.keys import OUTPUT_DIALECTS
from tests.lora_files import factors

diffusers: Any = None
lycoris: Any = None
peft: Any = None


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    """Imported here, not by each worker that only collects the tests: it takes four seconds."""
    for name in ("diffusers", "lycoris", "peft"):
        globals()[name] = pytest.importorskip(name)


DIM, FFN, TEXT, BLOCKS, RANK, ALPHA, STRENGTH = 64, 96, 32, 3, 4, 2.0, 1.5
Deltas = dict[str, Tensor]

# Wan's names, and diffusers' for the same, written down by hand: difflora's own table is what is tested.
IN_BLOCK = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v", "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip
IMAGE = {"cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj"}
OUTSIDE = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
CONVOLUTION = {"patch_embedding": "patch_embedding"}


def wan(image: bool = False) -> nn.Module:
    """A small Wan2.1 as diffusers has it."""
    torch.manual_seed(0)
    shape = {"image_dim": 48, "added_kv_proj_dim": DIM} if image else {}
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=DIM // 2, in_channels=36 if image else 16, text_dim=TEXT, freq_dim=32,
        ffn_dim=FFN, num_layers=BLOCKS, rope_max_seq_len=32, **shape,
    )  # fmt: skip


def their_names(image: bool = False, outside: bool = False) -> dict[str, str]:
    """Wan's name of every linear layer -> diffusers'."""
    inside = IN_BLOCK | (IMAGE if image else {})
    table = {f"blocks.{n}.{ours}": f"blocks.{n}.{theirs}" for n in range(BLOCKS) for ours, theirs in inside.items()}
    return table | (OUTSIDE if outside else {})


class Plain(nn.Module):
    """The same layers under Wan's own names, for libraries that adapt any module by name."""

    def __init__(self, image: bool = False) -> None:
        super().__init__()
        model = wan(image)
        for ours, theirs in (their_names(image, outside=True) | CONVOLUTION).items():
            parent = self
            *path, last = ours.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(last, model.get_submodule(theirs))

    def forward(self) -> None: ...


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double().clone() for name, value in model.named_parameters()}


def computed(model: nn.Module) -> dict[str, Tensor]:
    """The weights that layers compute with, read off by sending the identity through them, and their biases.

    LyCORIS 4.1.3 merges LoHa and LoKr with the square of their scale, and trains and samples with the scale.
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv3d) and not name.startswith("lycoris"):
            shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, *layer.kernel_size)
            identity = torch.eye(math.prod(shape)).view(-1, *shape)
            with torch.no_grad():
                zero = layer(torch.zeros(1, *shape)).flatten()
                found[f"{name}.weight"] = (layer(identity).flatten(1) - zero).T.double().view(-1, *shape)
                found[f"{name}.bias"] = zero.double()
    return found


def same(found: dict[str, Tensor], before: dict[str, Tensor], deltas: Deltas, strength: float = 1.0) -> None:
    """Every weight is what it was plus strength times its delta, and no other has changed."""
    assert set(deltas) <= set(before)
    for name, value in before.items():
        truth = value + strength * deltas[name].view(value.shape) if name in deltas else value
        assert torch.allclose(found[name], truth, rtol=0, atol=2e-5), f"{name}: {(found[name] - truth).abs().max():.1e}"
        assert (name in deltas) == bool((found[name] - value).abs().max() > 1e-3), name


def cells(kinds: Iterable[str], writers: Iterable[str], reader: str) -> pytest.MarkDecorator:
    """Rows of the table: kind and writer, under the name kind-writer-reader."""
    rows = [pytest.param(kind, writer, id=f"{kind}-{writer}-{reader}") for kind in kinds for writer in writers]
    return pytest.mark.parametrize(("kind", "writer"), rows)


# --- Written by us, read by them ----------------------------------------------------------------------------------


def trained(folder: Path, image: bool = False, outside: bool = False) -> FileLora:
    """A LoRA as musubi-tuner writes it, loaded by us."""
    model, stored = wan(image), {}
    for place, (ours, theirs) in enumerate(their_names(image, outside).items()):
        layer = model.get_submodule(theirs)
        up, down, alpha = factors(layer.out_features, layer.in_features, RANK, ALPHA, seed=place)
        key = "lora_unet_" + ours.replace(".", "_")
        stored |= {
            f"{key}.lora_up.weight": up * 0.1,
            f"{key}.lora_down.weight": down * 0.1,
            f"{key}.alpha": torch.tensor(alpha),
        }
    save_file(stored, folder / "musubi.safetensors")
    return difflora.load(folder / "musubi.safetensors")


def with_biases(folder: Path) -> difflora.Lora:
    """As lightx2v's files are: factors, and differences of biases."""
    lora = trained(folder)
    stored = load_file(lora.path)
    for name in lora:
        stored["lora_unet_" + name.replace(".", "_") + ".diff_b"] = 0.1 + torch.rand(lora.specs[name].shape[0])
    save_file(stored, folder / "biases.safetensors")
    return difflora.load(folder / "biases.safetensors")


def convolution(*kernel: int, core: bool = False) -> Callable[[Path], difflora.Lora]:
    """A LoRA with patch_embedding in it, as its trainer laid out the kernel: with its dimensions, flattened, or in a core."""

    def make(folder: Path) -> difflora.Lora:
        random = torch.Generator().manual_seed(3)
        ones = [1] * len(kernel)
        shapes = {"lora_up": (DIM, 2, *ones), "lora_down": (2, 16, *kernel) if kernel else (2, 64)}
        if core:
            shapes |= {"lora_mid": (2, 2, *kernel), "lora_down": (2, 16, *ones)}
        stored = load_file(trained(folder).path)
        stored |= {
            f"lora_unet_patch_embedding.{part}.weight": 0.4 * torch.randn(shape, generator=random)
            for part, shape in shapes.items()
        }
        file = folder / f"convolution with a kernel of {kernel}.safetensors"
        save_file(stored, file)
        return difflora.load(file)

    return make


def rslora(folder: Path) -> difflora.Lora:
    model = Plain()
    adapted = peft.get_peft_model(model, PEFT_CONFIGS["rslora"](list(their_names())))
    disturb(adapted, "lora_")
    adapted.save_pretrained(str(folder / "rslora"))
    return difflora.load(folder / "rslora/adapter_model.safetensors")


def other_form(form: str) -> Callable[[Path], difflora.Lora]:
    """A LoHa, a LoKr or full differences, or the three of them in one file."""

    def make(folder: Path) -> difflora.Lora:
        stored, model = {}, wan()
        for place, (name, theirs) in enumerate(their_names().items()):
            out, inside = model.get_submodule(theirs).weight.shape
            random = torch.Generator().manual_seed(place)
            forms = {
                "loha": {
                    "hada_w1_a": (out, 2),
                    "hada_w1_b": (2, inside),
                    "hada_w2_a": (out, 2),
                    "hada_w2_b": (2, inside),
                },
                "lokr": {"lokr_w1": (4, 4), "lokr_w2_a": (out // 4, 2), "lokr_w2_b": (2, inside // 4)},
                "lokr, full": {"lokr_w1": (4, 4), "lokr_w2": (out // 4, inside // 4)},
                "full difference": {"diff": (out, inside)},
            }
            shapes = forms[form] if form in forms else list(forms.values())[place % len(forms)]
            stored |= {
                f"diffusion_model.{name}.{part}": 0.2 * torch.randn(shape, generator=random)
                for part, shape in shapes.items()
            }
        save_file(stored, folder / f"{form}.safetensors")
        return difflora.load(folder / f"{form}.safetensors")

    return make


def reranked(form: str) -> Callable[[Path], difflora.Lora]:
    return lambda folder: difflora.rerank(other_form(form)(folder), FixedRank(8))


KINDS: dict[str, Callable[[Path], difflora.Lora]] = {
    "lora": trained,
    "difference, re-ranked": lambda folder: difflora.rerank(
        difflora.subtract(trained(folder), other_form("loha")(folder)), FixedRank(4)),
    "attention only": lambda folder: trained(folder).select("attn"),
    "two blocks": lambda folder: trained(folder).select("blocks 1-2"),
    "I2V": lambda folder: trained(folder, image=True),
    "outside the blocks": lambda folder: trained(folder, outside=True),
    "biases": with_biases,
    "rslora": rslora,
    "loha": other_form("loha"),
    "lokr": other_form("lokr"),
    "lokr, full": other_form("lokr, full"),
    "full difference": other_form("full difference"),
    "mixed": other_form("mixed"),
    "loha, re-ranked": reranked("loha"),
    "lokr, re-ranked": reranked("lokr"),
    "full difference, re-ranked": reranked("full difference"),
    "lora, convolution": convolution(1, 2, 2),
    "lora_mid, convolution": convolution(1, 2, 2, core=True),
    "flat convolution": convolution(),
    "flat minus full convolution": lambda folder: difflora.subtract(
        convolution()(folder), convolution(1, 2, 2, core=True)(folder), weight_b=0.5),
}  # fmt: skip
OURS = {f"difflora's {dialect} names": dialect for dialect in OUTPUT_DIALECTS}
WRITER = {dialect: writer for writer, dialect in OURS.items()}
CONVOLUTIONS = [kind for kind in KINDS if "convolution" in kind]


def deltas_of(lora: difflora.Lora, names: dict[str, str] | None = None) -> Deltas:
    """What `lora` changes, by parameter, after a way through plain torch."""
    deltas = {}
    for name in lora:
        module, _, last = name.rpartition(".")
        module, parameter = (module, "bias") if last == "bias" else (name, "weight")
        deltas[f"{names[module] if names else module}.{parameter}"] = lora[name].dense(torch.float64)
    return deltas


def put(lora: difflora.Lora, folder: Path, writer: str) -> Path:
    """An adapter of ours in a folder of its own, as PEFT and diffusers want it."""
    folder /= "adapter"
    folder.mkdir()
    return difflora.save(lora, folder / "adapter_model.safetensors", dialect=OURS[writer])


def through_diffusers(file: Path, model: nn.Module) -> None:
    state = diffusers.WanPipeline.lora_state_dict(str(file.parent), weight_name=file.name)
    diffusers.WanPipeline.load_lora_into_transformer(state, model)
    model.fuse_lora(lora_scale=STRENGTH)
    model.unload_lora()


def through_peft(lora: difflora.Lora, file: Path, model: nn.Module) -> nn.Module:
    ranks = {name: lora.specs[name].rank for name in lora.matrices}
    # PEFT's files have no rank in them: whoever hands one on says it in the configuration. Alpha equals rank.
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks,
                             lora_bias=len(ranks) < len(lora))  # fmt: skip
    config.save_pretrained(file.parent)
    return peft.PeftModel.from_pretrained(model, str(file.parent)).merge_and_unload()


def through_lycoris(file: Path, model: nn.Module) -> None:
    # LyCORIS names what it adapts itself; kohya's prefix is the one that its scripts for kohya set.
    stored = {key.replace("lora_unet_", "lycoris_"): value for key, value in load_file(file).items()}
    network, _ = lycoris.create_lycoris_from_weights(1.0, None, model, weights_sd=stored)
    network.apply_to()


# diffusers' reader of kohya's names asks for every module of every block, from block 0 on, and knows nothing else; that of the default
# names knows no patch_embedding. What none of its readers takes raises an error.
REFUSED_BY_DIFFUSERS = {
    "native": CONVOLUTIONS,
    "kohya": ("attention only", "two blocks", "outside the blocks", "biases", *CONVOLUTIONS),
    "diffusers": (),
}
READ_BY_DIFFUSERS = [
    (kind, WRITER[dialect])
    for kind in KINDS
    for dialect, refused in REFUSED_BY_DIFFUSERS.items()
    if kind not in refused
]


@pytest.mark.parametrize(
    ("kind", "writer"), [pytest.param(*cell, id="-".join((*cell, "diffusers"))) for cell in READ_BY_DIFFUSERS]
)
def test_diffusers_reads_what_we_write(tmp_path, kind, writer):
    lora = KINDS[kind](tmp_path)
    model = wan(image=kind == "I2V")
    before = weights(model)
    through_diffusers(put(lora, tmp_path, writer), model)
    same(weights(model), before, deltas_of(lora, their_names(image=True, outside=True) | CONVOLUTION), STRENGTH)


@pytest.mark.parametrize(("kind", "writer"), [
    pytest.param(kind, WRITER[dialect], id=f"{kind}-{WRITER[dialect]}-diffusers, which refuses it")
    for dialect, kinds in REFUSED_BY_DIFFUSERS.items() for kind in kinds
])  # fmt: skip
def test_diffusers_refuses_what_it_has_no_names_for(tmp_path, kind, writer):
    file = put(KINDS[kind](tmp_path), tmp_path, writer)
    with pytest.raises((IndexError, KeyError, RuntimeError, ValueError)):
        through_diffusers(file, wan())


@cells(["lora"], [WRITER["peft"]], "diffusers, which loads nothing")
def test_diffusers_passes_over_names_of_peft(tmp_path, kind, writer):
    model = wan()
    before = weights(model)
    through_diffusers(put(KINDS[kind](tmp_path), tmp_path, writer), model)
    same(weights(model), before, {})


@cells(KINDS, [WRITER["peft"]], "PEFT")
def test_peft_reads_what_we_write(tmp_path, kind, writer):
    lora = KINDS[kind](tmp_path)
    model = Plain(image=kind == "I2V")
    before = weights(model)
    same(weights(through_peft(lora, put(lora, tmp_path, writer), model)), before, deltas_of(lora))


@cells(["lora"], [writer for writer in OURS if writer != WRITER["peft"]], "PEFT, which loads nothing")
def test_peft_knows_only_its_own_names(tmp_path, kind, writer):
    lora = KINDS[kind](tmp_path)
    model = Plain()
    before = weights(model)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        merged = through_peft(lora, put(lora, tmp_path, writer), model)
    same(weights(merged), before, {})


# LyCORIS has a difference of a bias only where it has one of the weight in full.
@cells([kind for kind in KINDS if kind != "biases"], [WRITER["kohya"]], "LyCORIS")
def test_lycoris_reads_what_we_write(tmp_path, kind, writer):
    lora = KINDS[kind](tmp_path)
    model = Plain(image=kind == "I2V")
    before = computed(model)
    through_lycoris(put(lora, tmp_path, writer), model)
    same(computed(model), before, deltas_of(lora))


@cells(["biases"], [WRITER["kohya"]], "LyCORIS, which leaves them out")
def test_lycoris_leaves_biases_out(tmp_path, kind, writer):
    lora = KINDS[kind](tmp_path)
    model = Plain()
    before = computed(model)
    through_lycoris(put(lora, tmp_path, writer), model)
    same(computed(model), before, {name: delta for name, delta in deltas_of(lora).items() if name.endswith(".weight")})


@cells(["lora"], [writer for writer in OURS if writer != WRITER["kohya"]], "LyCORIS, which loads nothing")
def test_lycoris_knows_only_flat_names(tmp_path, kind, writer):
    model = Plain()
    before = computed(model)
    through_lycoris(put(KINDS[kind](tmp_path), tmp_path, writer), model)
    same(computed(model), before, {})


# --- Written by them, read by us ----------------------------------------------------------------------------------


def disturb(module: nn.Module, names: str) -> None:
    """Random numbers in an adapter's parameters: a fresh one changes nothing."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if re.search(names, name):
                value.copy_(0.2 * torch.randn(value.shape, generator=random))


PEFT_CONFIGS = {
    "lora": lambda modules: peft.LoraConfig(r=4, lora_alpha=2, target_modules=modules),
    "rslora": lambda modules: peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=modules),
    "patterns": lambda modules: peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=modules, rank_pattern={"self_attn.q": 2, "ffn.0": 8}, alpha_pattern={"blocks.1.ffn.0": 5}),
    "biases": lambda modules: peft.LoraConfig(r=4, lora_alpha=2, lora_bias=True, target_modules=modules),
    "loha": lambda modules: peft.LoHaConfig(r=3, alpha=2, target_modules=modules),
    "lokr": lambda modules: peft.LoKrConfig(r=2, alpha=3, target_modules=modules),
    "lokr, both sides": lambda modules: peft.LoKrConfig(r=2, alpha=3, decompose_both=True, decompose_factor=8, target_modules=modules),
    "lora, convolution": lambda modules: peft.LoraConfig(r=4, lora_alpha=2, target_modules=[*modules, *CONVOLUTION]),
}  # fmt: skip


@cells(PEFT_CONFIGS, ["PEFT"], "difflora")
def test_we_read_what_peft_writes(tmp_path, kind, writer):
    model = Plain()
    before = weights(model)
    adapted = peft.get_peft_model(model, PEFT_CONFIGS[kind](list(their_names())))
    disturb(adapted, r"lora_|hada_|lokr_")
    adapted.save_pretrained(str(tmp_path))
    lora = difflora.load(tmp_path / "adapter_model.safetensors")
    assert len(lora.matrices) == len(their_names()) + ("convolution" in kind)
    same(weights(adapted.merge_and_unload()), before, deltas_of(lora))


@cells(["lora, T2V", "lora, I2V", "rslora, T2V", "rslora, I2V"], ["diffusers"], "difflora")
def test_we_read_what_diffusers_writes(tmp_path, kind, writer):
    image = "I2V" in kind
    model = wan(image)
    before = weights(model)
    names = their_names(image, outside=True) | CONVOLUTION
    model.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora="rslora" in kind, target_modules=list(names.values()))
    )
    disturb(model, "lora_")
    diffusers.WanPipeline.save_lora_weights(
        str(tmp_path), transformer_lora_layers=peft.get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )  # fmt: skip
    lora = difflora.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert set(lora) == set(names)
    model.fuse_lora(lora_scale=STRENGTH)
    model.unload_lora()
    same(weights(model), before, deltas_of(lora, names), STRENGTH)


LYCORIS = {
    "lora": {"algo": "lora", "linear_dim": 4, "linear_alpha": 2},
    "lora, rs": {"algo": "lora", "linear_dim": 4, "linear_alpha": 2, "rs_lora": True},
    "loha": {"algo": "loha", "linear_dim": 3, "linear_alpha": 2},
    "lokr": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 3, "factor": 8},
    "lokr, both sides": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "factor": 8, "decompose_both": True},
    "lokr, full": {"algo": "lokr", "linear_dim": 10_000, "linear_alpha": 1, "factor": 8},
    "full difference": {"algo": "full"},
    # The others flatten a kernel or keep it as it is; these have a core for it.
    "lora, Tucker": {"algo": "lora", "linear_dim": 4, "linear_alpha": 2, "use_tucker": True},
    "loha, Tucker": {"algo": "loha", "linear_dim": 3, "linear_alpha": 2, "use_tucker": True},
    "lokr, Tucker": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 3, "factor": 4, "use_tucker": True},
}


def lycoris_file(path: Path, model: nn.Module, **settings: object) -> None:
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv3d"], "target_name": [".*"]})
    network = lycoris.create_lycoris(model, multiplier=1.0, **settings)
    network.apply_to()
    disturb(network, r"lora_|hada_|lokr_|weight|bias|diff")
    network.save_weights(str(path), torch.float32, {})


@cells(LYCORIS, ["LyCORIS"], "difflora")
def test_we_read_what_lycoris_writes(tmp_path, kind, writer):
    model = Plain()
    before = computed(model)
    lycoris_file(tmp_path / "theirs.safetensors", model, **LYCORIS[kind])
    lora = difflora.load(tmp_path / "theirs.safetensors")
    assert "patch_embedding" in lora
    same(computed(model), before, deltas_of(lora))


@pytest.mark.parametrize(
    ("algorithm", "word"), [("diag-oft", "turns"), ("boft", "turns"), ("ia3", "rescales"), ("glora", "GLoRA")]
)
def test_what_is_no_sum_is_refused_with_the_reason(tmp_path, algorithm, word):
    lycoris_file(tmp_path / "theirs.safetensors", Plain(), algo=algorithm, linear_dim=16, linear_alpha=2)
    with pytest.raises(difflora.DiffLoraError, match=word):
        difflora.load(tmp_path / "theirs.safetensors")


def test_peft_without_its_configuration_says_where_the_scale_comes_from(tmp_path):
    adapted = peft.get_peft_model(Plain(), PEFT_CONFIGS["lora"](list(their_names())))
    adapted.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 2
    with_config = difflora.load(tmp_path / "adapter_model.safetensors")
    assert any("adapter_config.json" in line for line in with_config.warnings)
    assert set(with_config.scales.values()) == {0.5}
    (tmp_path / "adapter_config.json").unlink()
    assert set(difflora.load(tmp_path / "adapter_model.safetensors").scales.values()) == {1.0}
