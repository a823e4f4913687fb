"""A MODEL as a trainer needs it: a differentiable function from noisy latents to velocities.

During training its weights are ordinary tensors, its blocks are recomputed in the backward pass instead of kept in memory,
and its attention is PyTorch's. Nothing is patched, and everything is restored afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...difflora.errors import TrainingError, UnsupportedError
from ...difflora.lora.selection import Selection, stack_of
from ...difflora.names.keys import model_order
from ...difflora.sentence import Sentence
from ...difflora.training.latents import SliderPairs

_PREFIX = "diffusion_model."
# Inputs of models beside text and numbers: pictures, and what is derived from them.
_PICTURES = (
    "c_concat",
    "clip_fea",
    "vace_context",
    "reference_latent",
    "ref_latents",
    "camera_conditions",
    "control_video",
)
SAMPLED = 64  # values of each weight that go into the fingerprint


@dataclass(frozen=True)
class Layer:
    """A linear layer that can get a trained branch: its name in a LoRA, the layer, and the shape of its weight."""

    name: str
    module: nn.Module
    shape: tuple[int, int]


def layers_of(model: nn.Module) -> list[Layer]:
    """The linear layers in the numbered blocks of a model, in model order. Found by the weight's shape, not by class:
    quantised models have their own classes."""
    found = []
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not path.startswith(_PREFIX) or not stack_of(path.removeprefix(_PREFIX)) or not isinstance(weight, Tensor):
            continue
        if len(weight.shape) == 2 and not isinstance(module, nn.Embedding):
            found.append(Layer(path.removeprefix(_PREFIX), module, (int(weight.shape[0]), int(weight.shape[1]))))
    return sorted(found, key=lambda layer: model_order(layer.name))


def chosen_layers(model: nn.Module, selection: str) -> list[Layer]:
    """Those that a selection picks. raises SelectionError if it picks none; a weight other than 1 is a TrainingError."""
    layers = layers_of(model)
    weights = Selection.parse(selection).weights(layer.name for layer in layers)
    for name, weight in weights.items():
        if weight != 1:
            raise TrainingError(
                f"selection {selection!r} gives {name} the weight {weight:g}, but a layer is either trained or not. Leave "
                "the weight out, and weigh the finished slider with Select Blocks."
            )
    return [layer for layer in layers if layer.name in weights]


class TrainingWire:
    """A model that is open for training; `opened` makes it."""

    def __init__(self, patcher: Any, conds: dict[str, Any], tick: Callable[[], None]):
        self.patcher, self.model = patcher, patcher.model
        self.device: torch.device = patcher.load_device
        self._conds, self._tick = conds, tick

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The model's prediction of noise − picture, through `apply_model` as in a sampler."""
        self._tick()
        options = self.patcher.model_options.get("transformer_options", {}).copy()
        options["optimized_attention_override"] = _pytorch_attention
        options |= {"cond_or_uncond": [0], "sigmas": sigma, "sample_sigmas": sigma}
        conds = {name: cond.process_cond(batch_size=len(noisy), device=self.device, area=None).cond
                 for name, cond in self._conds.items()}  # fmt: skip
        denoised = self.model.apply_model(noisy, sigma, transformer_options=options, **conds)
        velocity: Tensor = (noisy - denoised) / sigma.view(-1, *[1] * (noisy.ndim - 1))
        return velocity

    def latents_in(self, pairs: SliderPairs) -> SliderPairs:
        """Latents from the VAE as the model sees them."""
        return pairs.mapped(lambda latent: self.model.process_latent_in(latent[None].clone())[0].float())

    @torch.no_grad()
    def sampled(self, shape: Sequence[int], rows: int, seed: int, steps: int) -> Tensor:
        """Latents (rows, *shape), all from one noise, by Euler steps as KSampler's (simple, cfg 1) are; for the VAE."""
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        sigmas = comfy.samplers.calculate_sigmas(self.model.model_sampling, "simple", steps).to(self.device)
        x = noise.repeat(rows, *[1] * len(shape)).to(self.device) * sigmas[0]
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (then - now) * self.velocity(x, now.expand(rows))
        latents: Tensor = self.model.process_latent_out(x).cpu()
        return latents


def _pytorch_attention(_: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces whatever computes attention: sage and flash attention have no backward pass."""
    return attention_pytorch(*args, **kwargs)


@contextlib.contextmanager
def opened(
    patcher: Any, conditioning: Any, shape: Sequence[int], memory: int, tick: Callable[[], None]
) -> Iterator[TrainingWire]:
    """Load a model and open it for training; restores it on exit.

    conditioning  ComfyUI's; its first entry counts
    shape         of a latent, (channels, …)
    memory        bytes that a step needs in addition to the weights
    tick          called before each block; raises to cancel
    raises        UnsupportedError if the model cannot be trained here, TrainingError if it does not fit
    """
    if not isinstance(getattr(patcher.model, "model_sampling", None), comfy.model_sampling.CONST):
        raise UnsupportedError(
            f"model: {type(patcher.model).__name__} is not a flow-matching model. Train Slider works on such models only: "
            "Wan, Flux, SD3 and their like."
        )
    if getattr(patcher, "is_dynamic", lambda: False)():
        # ComfyUI's dynamic VRAM gives every layer the same few buffers, so autograd would keep values of another layer.
        patcher = patcher.clone(disable_dynamic=True)
    comfy.model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    missing = patcher.model_size() - patcher.loaded_size()
    if patcher.load_device.type != "cpu" and (missing > 0.01 * patcher.model_size() or patcher.model.model_lowvram):
        raise TrainingError(
            f"{missing / 1e9:.1f} of the model's {patcher.model_size() / 1e9:.1f} GB do not fit on the GPU, and training "
            "does not work while weights are swapped in and out. Use an fp8 file, a smaller batch, or free memory first."
        )
    with torch.inference_mode(False), contextlib.ExitStack() as undo:
        patcher.pre_run()
        undo.callback(patcher.cleanup)
        if hasattr(comfy.model_management, "in_training"):  # since 0.4: choose kernels that have a backward pass
            undo.callback(setattr, comfy.model_management, "in_training", comfy.model_management.in_training)
            comfy.model_management.in_training = True
        undo.enter_context(ordinary_tensors(patcher.model))
        undo.enter_context(checkpointed(blocks_of(patcher.model), tick))
        conds = _conds(patcher, conditioning, shape)
        yield TrainingWire(patcher, conds, tick)


def _conds(patcher: Any, conditioning: Any, shape: Sequence[int]) -> dict[str, Any]:
    """The arguments of `apply_model` beside the latent: the conditioning, as the model encodes it."""
    noise = torch.zeros(1, *shape, device=patcher.load_device)
    converted = comfy.sampler_helpers.convert_cond(conditioning[:1])
    for cond in converted:
        for name, value in cond.items():
            if isinstance(value, Tensor):
                cond[name] = value.clone()  # out of inference mode
    encoded = comfy.samplers.encode_model_conds(
        patcher.model.extra_conds, converted, noise, patcher.load_device, "positive", latent_image=noise
    )
    conds: dict[str, Any] = encoded[0]["model_conds"]
    pictures = [
        name for name, cond in conds.items() if name in _PICTURES or isinstance(cond, comfy.conds.CONDNoiseShape)
    ]
    if pictures:
        raise UnsupportedError(
            f"model: {type(patcher.model).__name__} needs a picture in addition to the text ({', '.join(pictures)}), as "
            "image-to-video and VACE models do. Use the text-to-video model: its slider works on the others, too."
        )
    return conds


@contextlib.contextmanager
def ordinary_tensors(model: nn.Module) -> Iterator[None]:
    """Freeze the weights, and turn them into tensors that autograd accepts.

    ComfyUI loads them as inference tensors, which autograd refuses: each becomes an ordinary tensor on the same memory.
    """
    taken: list[tuple[Any, str, Tensor]] = []
    seen: dict[int, Any] = {}
    thawed: list[Tensor] = []
    try:
        for module in model.modules():
            for held in (module._parameters, module._buffers):  # type: Any
                for name, tensor in list(held.items()):
                    if tensor is None or not tensor.is_inference() or type(tensor) not in (Tensor, nn.Parameter):
                        continue
                    if id(tensor) not in seen:
                        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                        plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
                        is_parameter = isinstance(tensor, nn.Parameter)
                        seen[id(tensor)] = nn.Parameter(plain, requires_grad=False) if is_parameter else plain
                    taken.append((held, name, tensor))
                    held[name] = seen[id(tensor)]
        for parameter in model.parameters():
            if parameter.requires_grad:
                thawed.append(parameter.requires_grad_(False))
        yield
    finally:
        for weight in thawed:
            weight.requires_grad_(True)
        for held, name, tensor in taken:
            held[name] = tensor


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks to recompute in the backward pass: the members of the outermost lists of modules."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(child)
            else:
                look(child)

    look(model)
    return found


@contextlib.contextmanager
def checkpointed(blocks: Iterable[nn.Module], tick: Callable[[], None]) -> Iterator[None]:
    """Recompute blocks in the backward pass instead of keeping their activations and, above all, their cast weights."""
    before: list[tuple[nn.Module, Any]] = []

    def twice(plain: Callable[..., Any]) -> Callable[..., Any]:
        def once(*args: Any, **kwargs: Any) -> Any:
            tick()  # on the way back, too: that is two thirds of a step
            return plain(*args, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return once(*args, **kwargs)
            # Nothing in a frozen model is random, so no random state is kept.
            return torch.utils.checkpoint.checkpoint(
                once, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )

        return forward

    try:
        for block in blocks:
            before.append((block, vars(block).get("forward")))
            block.forward = twice(block.forward)
        yield
    finally:
        for block, own in reversed(before):
            del block.forward
            if own is not None:
                block.forward = own


def fingerprint(model: nn.Module, conditioning: Any) -> str:
    """SHA-256 of a model as it is loaded, with its patches in it and sliders beside its weights, and of a conditioning."""
    beside = [
        (f"{name} {which}", factor)
        for name, module in model.named_modules()
        for branch in getattr(vars(module).get("forward"), "branches", ())
        for which, factor in zip(("up", "down"), branch, strict=True)
    ]
    return digest_of(model, [*beside, ("text", conditioning[0][0])])


@torch.no_grad()
def digest_of(model: nn.Module, more: Iterable[tuple[str, Tensor]] = ()) -> str:
    """SHA-256 over names, shapes and some values of every weight: reading all of a large model takes too long."""
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(model.named_parameters(), more):
        flat = tensor.detach().reshape(-1)
        taken = flat[:: max(1, flat.numel() // SAMPLED)][: 2 * SAMPLED].to("cpu").contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(taken.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Memory:
    """An estimate, in bytes."""

    weights: int
    factors: int
    block: int
    workspace: int

    @property
    def beside(self) -> int:
        """Everything except the model's weights."""
        return self.factors + self.block + self.workspace

    def told(self) -> Sentence:
        weights, factors, block, workspace = (
            f"{size / 1e9:.1f}" for size in (self.weights, self.factors, self.block, self.workspace)
        )
        return Sentence(
            "needs about {0} GB: {1} weights, {2} one block at a time, {3} factors and optimizer, {4} workspace",
            f"{(self.weights + self.beside) / 1e9:.1f}", weights, block, factors, workspace,
        )  # fmt: skip


def memory_needed(
    patcher: Any, layers: Sequence[Layer], shape: Sequence[int], rows: int, rank: int, sides: int, moments: int
) -> Memory:
    """An upper bound of the memory that a step needs.

    rows     in a batch, both sides together
    moments  tensors that the optimiser keeps for each factor
    """
    size = 4  # bytes of a float32
    values = sum(rank * sum(layer.shape) for layer in layers) * sides
    width = max(min(layer.shape) for layer in layers)
    widest = max(max(layer.shape) for layer in layers)
    tokens = rows * max(1, math.prod(shape[1:]) // 4)  # patches of 2 × 2
    blocks = blocks_of(patcher.model)
    cast = max((sum(2 * p.numel() for p in block.parameters()) for block in blocks), default=0)
    inside = tokens * (14 * width + 3 * widest) * size  # what autograd keeps of one block
    between = tokens * width * size * max(1, len(blocks))
    return Memory(patcher.model_size(), values * size * (2 + moments), cast + inside, between + 500_000_000)
