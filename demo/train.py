"""Trains everything in demo/models: a small VAE, a small Wan2.1 and a pair of LoRAs.

    COMFYUI_DIR=/path/to/ComfyUI python demo/train.py --work /tmp/difflora_demo

The models are ComfyUI's own classes (comfy.ldm.wan) with small numbers, so what is trained is the real
architecture under its real parameter names. Everything is drawn and seeded. One core takes less than an hour, and each stage prints its
own time. A finished stage is skipped, and a stopped one goes on from its last checkpoint.

Stages
    vae      pictures <-> latents, 16 channels, an eighth of the size
    latents  encodes the scenes once, standardised per channel
    base     flow matching on scenes of every density, without captions
    loras    "dense" and "sparse": the same scenes with many and with few things
    decoder  once more the VAE's second half, for sharper pictures
    export   writes the files that ComfyUI loads
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scenes import MOST, SIZE, draw, random_scene
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
CHANNELS = 16
LATENT_SIZE = SIZE // 8
TEXT_WIDTH = 4096
VAE_SHAPE = {
    "dim": 16,
    "z_dim": CHANNELS,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
WAN_SHAPE = {"dim": 128, "ffn_dim": 512, "num_heads": 1, "num_layers": 6, "freq_dim": 256, "text_dim": TEXT_WIDTH}
SHIFT = 3.0
RANK, ALPHA = 16, 8.0


# --- ComfyUI's classes ---------------------------------------------------------------------------------------


def import_comfyui(folder: str | None) -> None:
    """Make `import comfy` find ComfyUI, and have it compute attention in a way that can be differentiated."""
    folder = folder or os.environ.get("COMFYUI_DIR")
    if not folder or not Path(folder, "comfy", "ldm", "wan", "model.py").is_file():
        sys.exit(f"ComfyUI is needed for its model classes: set COMFYUI_DIR to a ComfyUI folder (found: {folder!r}).")
    sys.path.insert(0, folder)
    import comfy.options

    comfy.options.args_parsing = False
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True


def new_wan() -> nn.Module:
    """A Wan2.1 text-to-video model with fresh weights."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    model = WanModel(model_type="t2v", operations=comfy.ops.disable_weight_init, dtype=torch.float32, **WAN_SHAPE)
    initialise(model)
    nn.init.zeros_(model.head.head.weight)
    # The captions are empty, so the text is always zero and this matrix never matters.
    nn.init.zeros_(model.text_embedding[0].weight).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=WAN_SHAPE["dim"] ** -0.5)
    return model


def new_vae() -> nn.Module:
    """A Wan2.1 VAE with fresh weights, for single frames: of each causal kernel only the present frame is used."""
    from comfy.ldm.wan.vae import CausalConv3d, RMS_norm, WanVAE

    # With one frame, everything before it is padding, so a causal 3-D convolution is a 2-D one with the
    # kernel's last time slice. That trains many times faster; the other slices stay zero, so that the
    # finished VAE, run as the 3-D one it is, gives the same picture.
    def one_frame(self: nn.Conv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        kernel = self.weight[:, :, -1]
        return F.conv2d(
            x.squeeze(2), kernel, self.bias, padding=(kernel.shape[-2] // 2, kernel.shape[-1] // 2)
        ).unsqueeze(2)

    def norm(self: RMS_norm, x: Tensor) -> Tensor:
        return x * (torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12) * self.gamma)

    vae = WanVAE(**VAE_SHAPE)
    initialise(vae)
    with torch.no_grad():  # hardly any noise on the latents at first: the pictures come before the code's shape
        vae.conv1.weight[CHANNELS:] *= 0.1
        vae.conv1.bias[CHANNELS:] = -6
    for name, module in vae.named_modules():
        if isinstance(module, RMS_norm):
            module.forward = norm.__get__(module)  # the same in fewer passes over memory
        if isinstance(module, CausalConv3d):
            module.forward = one_frame.__get__(module)
            with torch.no_grad():
                module.weight[:, :, :-1] = 0
                if name.endswith("time_conv"):  # one frame never runs it: a clip repeats its frames
                    eye = torch.eye(module.in_channels)
                    module.weight.zero_()
                    module.weight[:, :, -1, 0, 0] = eye.repeat(module.out_channels // module.in_channels, 1)
    return vae


def initialise(model: nn.Module) -> None:
    """Usual starting weights; ComfyUI leaves its layers uninitialised because it always loads a file."""
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor):
            with torch.no_grad():
                if weight.ndim == 1:
                    weight.fill_(1)
                elif isinstance(module, nn.Conv3d) and weight.shape[-1] == 3:
                    weight.normal_(std=(2 / weight[0, :, 0].numel()) ** 0.5)
                else:
                    nn.init.xavier_uniform_(weight.flatten(1))
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


def denoise(model: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """The model's estimate of `noise - picture`. noisy (b, 16, h, w), sigma (b,)."""
    # Empty captions are zeros. One token of them says as much as many: all get the same attention.
    context = noisy.new_zeros(len(noisy), 1, TEXT_WIDTH)
    return model(noisy.unsqueeze(2), sigma * 1000, context).squeeze(2)


def shifted(t: Tensor) -> Tensor:
    """Spend more time at high noise, as Wan's sampler does."""
    return SHIFT * t / (1 + (SHIFT - 1) * t)


# --- Training ------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024): momentum, made orthogonal before it is added. Vectors are left to Adam.

    On the VAE it needs a third of the steps that AdamW needs.
    """

    def __init__(self, parameters: list[Tensor], lr: float, vector_lr: float, momentum: float = 0.95) -> None:
        matrices = [p for p in parameters if min(p.flatten(1).shape if p.ndim > 1 else (1,)) > 1]
        vectors = [p for p in parameters if all(p is not m for m in matrices)]
        super().__init__([{"params": matrices, "lr": lr}, {"params": vectors, "lr": vector_lr}], {"momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        matrices, vectors = self.param_groups
        alike: dict[tuple[int, ...], list[Tensor]] = {}  # equal shapes are worked on together
        for parameter in matrices["params"]:
            if parameter.grad is not None:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - matrices["momentum"])
                alike.setdefault(tuple(parameter.flatten(1).shape), []).append(parameter)
        for (rows, columns), parameters in alike.items():
            blends = [p.grad.lerp(self.state[p]["momentum"], matrices["momentum"]).flatten(1) for p in parameters]
            for parameter, turn in zip(parameters, orthogonal(torch.stack(blends)), strict=True):
                parameter.add_(turn.view_as(parameter), alpha=-matrices["lr"] * max(1, rows / columns) ** 0.5)
        for parameter in vectors["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter)).lerp_(parameter.grad, 0.1)
                square = state.setdefault("square", torch.zeros_like(parameter)).lerp_(parameter.grad.square(), 0.01)
                state["steps"] = state.get("steps", 0) + 1
                corrected = (square / (1 - 0.99 ** state["steps"])).sqrt() * (1 - 0.9 ** state["steps"])
                parameter.addcdiv_(mean, corrected + 1e-8, value=-vectors["lr"])


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrices, by five Newton-Schulz steps. matrices (n, rows, columns)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)).bfloat16()  # it need not be exact
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023): the sign of a blend of gradient and momentum."""

    def __init__(self, parameters: list[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by `lr`."""
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.sub_(torch.sign(momentum.lerp(parameter.grad, 1 - fast)), alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - slow)


def fit(
    name: str,
    work: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    rate: Callable[[float], float],
    loss_of: Callable[[int, torch.Generator], Tensor],
    ema: float = 0.0,
) -> None:
    """Run a training loop that can be stopped and started again, and leave the (averaged) weights in `module`.

    Every step draws from a generator seeded by its number, so a resumed run does exactly what an
    undisturbed one would have done.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{name}.checkpoint"
    full_rates = [group["lr"] for group in optimizer.param_groups]
    average = [p.detach().clone() for p in module.parameters()]
    first = 0
    if checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(kept["module"])
        optimizer.load_state_dict(kept["optimizer"])
        average, first = kept["average"], kept["step"]
        print(f"{name}: goes on from step {first}")
    began, seen, losses = time.process_time(), first, []
    for step in range(first, steps):
        for group, full in zip(optimizer.param_groups, full_rates, strict=True):
            group["lr"] = full * rate(step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step, torch.Generator().manual_seed(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        keep = min(ema, (step + 1) / (step + 10))
        for mean, parameter in zip(average, module.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - keep)
        if (step + 1) % 100 == 0:
            each = (time.process_time() - began) / (step + 1 - seen)
            print(
                f"{name}: step {step + 1}/{steps}, loss {np.mean(losses[-100:]):.4f}, {each * 1000:.0f} ms a step",
                flush=True,
            )
        if (step + 1) % 250 == 0:
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "module": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step + 1,
                },
                part,
            )
            part.replace(checkpoint)
    with torch.no_grad():
        for mean, parameter in zip(average, module.parameters(), strict=True):
            parameter.copy_(mean)


def warm_up_then_cosine(done: float) -> float:
    """Two per cent warm-up, then down to a hundredth along a cosine."""
    return min(1.0, (done + 1e-3) / 0.02) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * done)))


def warm_up_then_constant(done: float) -> float:
    """Five per cent warm-up, then constant."""
    return min(1.0, (done + 1e-3) / 0.05)


# --- Stages --------------------------------------------------------------------------------------------------


def draw_all(seeds: range, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Scenes as pictures (n, 3, SIZE, SIZE) uint8 and masks (n, SIZE, SIZE) bool."""
    drawn = [draw(random_scene(seed, count)) for seed in seeds]
    pictures = torch.from_numpy(np.stack([p for p, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.from_numpy(np.stack([m for _, m in drawn]))


def as_input(pictures: Tensor) -> Tensor:
    """Pictures in 0…255 to what the VAE takes: -1…1, with a time axis."""
    return (pictures.float() / 127.5 - 1).unsqueeze(2)


class Windows:
    """Scenes to train the VAE on, cut into windows: it is convolutional, and small windows are cheaper."""

    def __init__(self, scenes: int) -> None:
        self.pictures, self.masks = draw_all(range(scenes))

    def take(self, edge: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows (n, 3, 1, edge, edge) in -1...1 and their masks (n, edge, edge)."""
        pick = torch.randint(len(self.pictures), (8 if edge < SIZE else 3,), generator=generator)
        top, left = (int(torch.randint((SIZE - edge) // 8 + 1, (1,), generator=generator)) * 8 for _ in range(2))
        window = (..., slice(top, top + edge), slice(left, left + edge))
        return as_input(self.pictures[pick][window]), self.masks[pick][window]


def redraw_loss(back: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error. Things are small and matter most."""
    return ((back - picture).abs().mean(1).squeeze(1) * (1 + 2 * mask)).mean()


def train_vae(work: Path, steps: int) -> None:
    torch.manual_seed(1)
    vae = new_vae()
    windows = Windows(2000)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        # The last steps see whole pictures, with their true borders.
        edge = 32 if step < steps * 0.85 else 48 if step < steps * 0.96 else SIZE
        picture, mask = windows.take(edge, generator)
        mean, log_variance = vae.conv1(vae.encoder(picture)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-12, 4)
        code = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
        apart = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return redraw_loss(vae.decoder(vae.conv2(code)), picture, mask) + 1e-4 * apart

    fit("vae", work, vae, Muon(list(vae.parameters()), 0.02, 3e-3), steps, warm_up_then_cosine, loss_of, ema=0.99)
    torch.save(vae.state_dict(), work / "vae.pt")
    report_vae(vae, work / "vae.png")


def train_decoder(work: Path, steps: int) -> None:
    """Sharper pictures from the same latents: the encoder stays as the base model knows it."""
    vae = load_vae(work)
    vae.decoder.requires_grad_(True)
    deviation = torch.load(work / "latents.pt", weights_only=True)["deviation"].view(1, -1, 1, 1, 1)
    windows = Windows(2000)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        picture, mask = windows.take(32 if step < steps * 0.7 else 48 if step < steps * 0.92 else SIZE, generator)
        with torch.no_grad():
            code = vae.conv1(vae.encoder(picture))[:, :CHANNELS]
        # A little noise, as sampled latents have it.
        code = code + 0.1 * deviation * torch.randn(code.shape, generator=generator)
        return redraw_loss(vae.decoder(vae.conv2(code)), picture, mask)

    fit(
        "decoder",
        work,
        vae.decoder,
        Muon(list(vae.decoder.parameters()), 0.01, 1e-3),
        steps,
        warm_up_then_cosine,
        loss_of,
        ema=0.99,
    )
    torch.save(vae.decoder.state_dict(), work / "decoder.pt")
    report_vae(vae, work / "decoder.png")


def report_vae(vae: nn.Module, path: Path) -> None:
    fresh, _ = draw_all(range(900_000, 900_032))
    with torch.no_grad():
        back = vae.decoder(vae.conv2(encode(vae, fresh).unsqueeze(2))).squeeze(2)
    error = (back - as_input(fresh).squeeze(2)).abs().mean()
    print(f"{path.stem}: mean absolute error on new scenes {error:.4f} (range -1 to 1)")
    show(path, torch.cat([fresh[:8].float() / 127.5 - 1, back[:8]]), 8)


@torch.no_grad()
def encode(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (n, 3, SIZE, SIZE) uint8 to the VAE's own latents (n, 16, h, w)."""
    return torch.cat([vae.conv1(vae.encoder(as_input(part)))[:, :CHANNELS].squeeze(2) for part in pictures.split(32)])


def load_vae(work: Path) -> nn.Module:
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    if (work / "decoder.pt").is_file():
        vae.decoder.load_state_dict(torch.load(work / "decoder.pt", weights_only=True))
    return vae.eval().requires_grad_(False)


def encode_scenes(work: Path, scenes: int, pairs: int) -> None:
    """Latents of the base model's scenes and of the pairs; every channel then has mean 0 and deviation 1."""
    vae = load_vae(work)
    base = encode(vae, draw_all(range(10_000, 10_000 + scenes))[0])
    full = [random_scene(seed, MOST) for seed in range(500_000, 500_000 + pairs)]
    dense, sparse = (
        encode(
            vae,
            torch.from_numpy(np.stack([draw(s.with_first(n(i)))[0] for i, s in enumerate(full)])).permute(0, 3, 1, 2),
        )
        for n in (lambda i: MOST - i % 3, lambda i: 1 + i % 3)
    )
    mean, deviation = base.mean((0, 2, 3), keepdim=True), base.std((0, 2, 3), keepdim=True)
    print(f"latents: deviations of the channels {deviation.flatten().min():.2f} to {deviation.flatten().max():.2f}")
    kept = {
        name: (latents - mean) / deviation for name, latents in (("base", base), ("dense", dense), ("sparse", sparse))
    }
    torch.save({**kept, "mean": mean.flatten(), "deviation": deviation.flatten()}, work / "latents.pt")


def flow_loss(model: nn.Module, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching: on the straight line from picture to noise, the model says which way the line goes."""
    noise = torch.randn(clean.shape, generator=generator)
    sigma = shifted(torch.rand(len(clean), generator=generator))
    line = sigma.view(-1, 1, 1, 1)
    return F.mse_loss(denoise(model, clean * (1 - line) + noise * line, sigma), noise - clean)


def train_base(work: Path, steps: int) -> None:
    latents = torch.load(work / "latents.pt", weights_only=True)["base"]
    torch.manual_seed(2)
    model = new_wan()

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        return flow_loss(model, latents[torch.randint(len(latents), (16,), generator=generator)], generator)

    fit("base", work, model, Muon(list(model.parameters()), 0.02, 2e-3), steps, warm_up_then_cosine, loss_of, ema=0.998)
    torch.save(model.state_dict(), work / "base.pt")
    show_samples(work / "base.png", model, work, range(32))


class Adapter(nn.Module):
    """A LoRA on one linear layer, added to its output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(RANK, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        linear.register_forward_hook(
            lambda _, inputs, output: output + (ALPHA / RANK) * (inputs[0] @ self.down.T) @ self.up.T
        )


def add_lora(model: nn.Module) -> nn.ModuleDict:
    """LoRAs on every linear layer of the blocks, under their names in musubi-tuner's spelling."""
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith("blocks.")}
    return nn.ModuleDict({f"lora_unet_{name.replace('.', '_')}": Adapter(linear) for name, linear in linears.items()})


def train_lora(work: Path, name: str, steps: int, lr: float) -> None:
    """One LoRA of the pair. Both start from the same factors and see the same scenes and noise in the same order."""
    latents = torch.load(work / "latents.pt", weights_only=True)[name]
    model = new_wan()
    model.load_state_dict(torch.load(work / "base.pt", weights_only=True))
    model.requires_grad_(False)
    torch.manual_seed(3)
    lora = add_lora(model)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        return flow_loss(model, latents[torch.randint(len(latents), (16,), generator=generator)], generator)

    fit(name, work, lora, Lion(list(lora.parameters()), lr), steps, warm_up_then_constant, loss_of)
    torch.save(lora.state_dict(), work / f"{name}.pt")
    show_samples(work / f"{name}.png", model, work, range(16))


@torch.no_grad()
def sample(model: nn.Module, seeds: range, steps: int = 20) -> Tensor:
    """Latents (n, 16, h, w), made as ComfyUI's KSampler makes them (euler, simple, cfg 1)."""
    x = torch.cat(
        [torch.randn(1, CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    times = torch.tensor([(1000 - int(i * 1000 / steps)) / 1000 for i in range(steps)] + [0.0])
    for now, then in zip(shifted(times)[:-1], shifted(times)[1:], strict=True):
        x = x + (then - now) * denoise(model, x, now.expand(len(x)))
    return x


@torch.no_grad()
def show_samples(path: Path, model: nn.Module, work: Path, seeds: range) -> None:
    """Sample and write a PNG, to look at while training goes on."""
    vae, latents = load_vae(work), torch.load(work / "latents.pt", weights_only=True)
    code = sample(model, seeds) * latents["deviation"].view(1, -1, 1, 1) + latents["mean"].view(1, -1, 1, 1)
    show(path, vae.decoder(vae.conv2(code.unsqueeze(2))).squeeze(2), 8)


def show(path: Path, pictures: Tensor, columns: int) -> None:
    """Write pictures (n, 3, h, w) in -1…1 as one PNG."""
    from PIL import Image

    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(pixels[i : i + columns], axis=1) for i in range(0, len(pixels), columns)]
    grid = Image.fromarray(np.concatenate(rows))
    grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST).save(path)


# --- Files ---------------------------------------------------------------------------------------------------


FOLDERS = {"wan": "diffusion_models", "vae": "vae", "dense": "loras", "sparse": "loras"}  # as ComfyUI calls them


def model_file(models: Path, name: str) -> Path:
    return models / FOLDERS[name] / f"difflora_demo_{name}.safetensors"


def export(work: Path, target: Path, settings: argparse.Namespace) -> None:
    for name in FOLDERS:
        model_file(target, name).parent.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half() for name, tensor in torch.load(work / "base.pt", weights_only=True).items()}
    save_file(
        half, model_file(target, "wan"), metadata={"modelspec.title": "Differential LoRA demo, Wan2.1 architecture"}
    )
    save_file(folded_vae(work), model_file(target, "vae"))
    for name in ("dense", "sparse"):
        tensors = {}
        for key, tensor in torch.load(work / f"{name}.pt", weights_only=True).items():
            module, factor = key.rsplit(".", 1)
            tensors[f"{module}.lora_{factor}.weight"] = tensor.contiguous()
            tensors[f"{module}.alpha"] = torch.tensor(ALPHA)
        metadata = {
            "ss_network_module": "networks.lora_wan",
            "ss_network_dim": str(RANK),
            "ss_network_alpha": str(ALPHA),
            "ss_base_model_version": "wan2.1",
            "ss_optimizer": "demo.train.Lion",
            "ss_learning_rate": str(settings.lora_rate),
            "ss_lr_scheduler": "constant_with_warmup",
            "ss_steps": str(settings.lora_steps),
            "ss_seed": "3",
            "ss_output_name": f"difflora_demo_{name}",
            "ss_training_comment": f"drawn scenes, {'many' if name == 'dense' else 'few'} things, empty captions",
        }
        save_file(tensors, model_file(target, name), metadata=metadata)
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
    sizes = {path.name: path.stat().st_size for path in sorted(target.rglob("*.safetensors"))}
    print(
        *(f"{size / 1e6:6.2f} MB  {name}" for name, size in sizes.items()),
        f"{sum(sizes.values()) / 1e6:6.2f} MB  together",
        sep="\n",
    )


def folded_vae(work: Path) -> dict[str, Tensor]:
    """The VAE with standardisation inside it, so that ComfyUI's own latent statistics lead to mean 0, deviation 1.

    ComfyUI gives Wan `(latent - wan_mean) / wan_deviation`. So the encoder must return
    `(code - mean) / deviation * wan_deviation + wan_mean`, and the decoder undo it: both are 1x1 convolutions already.
    """
    from comfy.latent_formats import Wan21

    vae = {name: tensor.double() for name, tensor in load_vae(work).state_dict().items()}
    latents = torch.load(work / "latents.pt", weights_only=True)
    mean, deviation = latents["mean"].double(), latents["deviation"].double()
    wan_mean, wan_deviation = (t.flatten().double() for t in (Wan21().latents_mean, Wan21().latents_std))
    scale = wan_deviation / deviation
    vae["conv1.weight"][:CHANNELS] *= scale.view(-1, 1, 1, 1, 1)
    vae["conv1.bias"][:CHANNELS] = (vae["conv1.bias"][:CHANNELS] - mean) * scale + wan_mean
    weight = vae["conv2.weight"].flatten(1)
    vae["conv2.bias"] += weight @ (mean - wan_mean / scale)
    vae["conv2.weight"] = (weight / scale).view_as(vae["conv2.weight"])
    return {name: tensor.half().contiguous() for name, tensor in vae.items()}


def stages(settings: argparse.Namespace) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    work = settings.work
    yield "vae", work / "vae.pt", lambda: train_vae(work, settings.vae_steps)
    yield "latents", work / "latents.pt", lambda: encode_scenes(work, settings.scenes, settings.pairs)
    yield "base", work / "base.pt", lambda: train_base(work, settings.base_steps)
    for name in ("dense", "sparse"):
        yield (
            name,
            work / f"{name}.pt",
            lambda name=name: train_lora(work, name, settings.lora_steps, settings.lora_rate),
        )
    yield "decoder", work / "decoder.pt", lambda: train_decoder(work, settings.decoder_steps)
    yield "export", work / "exported", lambda: export(work, settings.models, settings)


def add_comfyui_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--comfyui", help="ComfyUI folder (default: the variable COMFYUI_DIR)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's models.")
    add_comfyui_arguments(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate results and checkpoints")
    parser.add_argument("--models", type=Path, default=HERE / "models", help="where the finished files go")
    parser.add_argument("--vae-steps", type=int, default=1100)
    parser.add_argument("--decoder-steps", type=int, default=1600)
    parser.add_argument("--base-steps", type=int, default=4500)
    parser.add_argument("--lora-steps", type=int, default=500)
    parser.add_argument("--lora-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1, help="1: the same bits on every number of cores")
    parser.add_argument(
        "--stages", nargs="+", help="only these; decoder beside base, and dense beside sparse, can run at once"
    )
    parser.add_argument("--scenes", type=int, default=2500)
    parser.add_argument("--pairs", type=int, default=300)
    settings = parser.parse_args()
    settings.work.mkdir(parents=True, exist_ok=True)
    import_comfyui(settings.comfyui)
    torch.set_num_threads(settings.threads)
    whole = time.process_time()
    for name, result, run in stages(settings):
        if settings.stages and name not in settings.stages:
            continue
        if result.exists():
            print(f"{name}: already there ({result.name})")
            continue
        began, wall = time.process_time(), time.time()
        run()
        print(
            f"{name}: {(time.process_time() - began) / 60:.1f} min of processor time, {(time.time() - wall) / 60:.1f} by the clock",
            flush=True,
        )
    print(f"all: {(time.process_time() - whole) / 60:.1f} min of processor time")


if __name__ == "__main__":
    main()
