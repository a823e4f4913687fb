"""Train Slider: from pairs to a slider on a MODEL wire."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted
from comfy_api.v0_0_2 import io
from comfy_api.v0_0_2 import ui as comfy_ui
from latent_preview import get_previewer
from PIL import Image, ImageDraw, ImageFont
from server import PromptServer
from torch import Tensor

from ...difflora import Lora
from ...difflora.errors import OutputError, TrainingError, UnsupportedError
from ...difflora.lora.algebra import subtract
from ...difflora.lora.trained import TrainedLora
from ...difflora.sentence import Sentence, printable
from ...difflora.training.checkpoint import Checkpoint
from ...difflora.training.latents import ENOUGH, SliderPairs
from ...difflora.training.magnitude import REACH, at_limit, to_reach
from ...difflora.training.optimizers import OPTIMIZERS
from ...difflora.training.pairs import to_tensor
from ...difflora.training.slider import MODES, SIGMAS, Settings, SliderTrainer
from ..common import plots
from ..common.fonts import font_for
from ..common.inputs import one_of, within
from ..common.messages import lora_modules, report, with_pictures
from ..common.paths import inside
from ..common.progress import interruptible
from ..common.search import found_by
from ..common.types import LoraDelta, SliderPairsWire
from .wire import TrainingWire, chosen_layers, fingerprint, memory_needed, opened

FOLDER = "differential-lora/training"
SAVE_EVERY = 25  # steps
LOWEST_SIGMA = 0.001  # below it, noise − picture is lost in rounding
SHOWN = (-3.0, 0.0, 3.0)
GO_ON, ANEW, AS_IT_IS = BEFORE = ("go on", "start anew", "use it as it is")


class TrainSlider(io.ComfyNode):
    """Opens the model, trains, saves the state reached, and closes the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        noise = "; ".join(f"{name}: {low:g} to {high:g}" for name, (low, high) in SIGMAS.items())
        return io.Schema(
            node_id="DiffLoraTrainSlider",
            display_name="Train Slider",
            category="Differential LoRA/dataset",
            **found_by("train lora", "concept slider", "fine-tune", "learn", "lora trainer"),
            description="Trains a slider from pairs of pictures on the connected model: a text-to-video or text-to-image "
            "model that was trained by flow matching. Keeps a checkpoint every 25 steps, and resumes from it "
            "after Cancel or a restart.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model, without a step-distill LoRA. bf16, fp16, fp8 or GGUF."
                ),
                SliderPairsWire.Input("pairs", tooltip="From Encode Pairs. 20 or more."),
                io.Conditioning.Input(
                    "conditioning", tooltip="The empty prompt, from Empty Text (Wan). The same for every picture."
                ),
                io.String.Input("name", default="slider", tooltip="What the LoRA and its checkpoints are called."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="direct",
                    tooltip="direct: one LoRA that leads to A with + and to B with −. pair: one LoRA for each side, with the "
                    "same noise and first factors, and their difference.",
                ),
                io.String.Input(
                    "selection",
                    default="attn",
                    tooltip="Which layers are trained, written as in Select Blocks, without weights. Only layers in the "
                    "blocks.",
                ),
                io.Int.Input("rank", default=4, min=1, max=256, tooltip="Rank of each LoRA that is trained."),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=1_000_000,
                    tooltip="How many steps in all; with more than before, training resumes from the last checkpoint. "
                    "100 are enough for the demo; for full-size Wan nobody has measured it yet.",
                ),
                io.Int.Input("batch", default=4, min=1, max=64, tooltip="Pairs in a step; two pictures each."),
                io.String.Input(
                    "learning_rate",
                    default="2e-5",
                    tooltip="For Lion at full size; 1e-3 for the demo, whose model is 40 times narrower. AdamW wants about "
                    "five times as much.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="lion",
                    tooltip="How the weights follow the gradient.",
                ),
                io.Int.Input(
                    "warmup", default=15, min=0, max=10_000, tooltip="Steps over which the learning rate rises."
                ),
                io.Combo.Input(
                    "noise",
                    options=[*SIGMAS, "custom"],
                    default="composition",
                    tooltip=f"Which noise levels are trained, uniform and not shifted. {noise}. What is where is decided at "
                    "high noise; how it looks, below.",
                ),
                io.Float.Input(
                    "sigma_low",
                    default=0.75,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="For custom: the lowest noise level. Wan2.2's high-noise model: 0.875.",
                ),
                io.Float.Input(
                    "sigma_high",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="For custom: the highest noise level.",
                ),
                # A widget called seed would otherwise change after each run, and start the training anew.
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="For the initial factors, the order and the noise. The same seed gives the same slider.",
                ),
                io.Float.Input(
                    "reach",
                    default=REACH,
                    min=0.0,
                    max=10.0,
                    step=0.5,
                    tooltip="The strength at which the slider is to show what the pairs show: its size is set so, by the loss. "
                    "0: leave the size as training made it.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=25,
                    min=0,
                    max=100_000,
                    tooltip="Steps between previews at strength −3, 0 and +3. 0: only at the end.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=list(BEFORE),
                    default=GO_ON,
                    tooltip="If this training was started before. go on: from the last checkpoint. start anew: forget "
                    "it. use it as it is: no more steps, the slider as trained so far.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="For previews in full colour. Without it they are rough and cost less.",
                ),
            ],
            outputs=[
                LoraDelta.Output("lora", display_name="lora", tooltip="The slider, for every node that takes a LoRA."),
                LoraDelta.Output("a", display_name="a", tooltip="Side A. In direct mode half of the slider."),
                LoraDelta.Output("b", display_name="b", tooltip="Side B. In direct mode minus half of the slider."),
                io.String.Output("report", display_name="report", tooltip="What was trained, and how it was scaled."),
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="The slider at −3, 0 and +3, from one noise."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        pairs: SliderPairs,
        conditioning: Any,
        name: str,
        mode: str,
        selection: str,
        rank: int,
        steps: int,
        batch: int,
        learning_rate: str,
        optimizer: str,
        warmup: int,
        noise: str,
        sigma_low: float,
        sigma_high: float,
        seed: int,
        reach: float,
        preview_every: int,
        checkpoint: str,
        vae: Any = None,
    ) -> io.NodeOutput:
        one_of("noise", noise, [*SIGMAS, "custom"])
        one_of("checkpoint", checkpoint, BEFORE)
        within(0, 10, reach=reach)
        low, high = SIGMAS.get(noise, (sigma_low, sigma_high))
        settings = Settings(
            mode=mode, rank=rank, steps=steps, batch=batch, learning_rate=_rate(learning_rate), optimizer=optimizer,
            warmup=warmup, sigma=(max(low, LOWEST_SIGMA), high), seed=seed,
        )  # fmt: skip
        layers = chosen_layers(model.model, selection)
        moments = 1 if optimizer == "lion" else 2
        shape = max((tuple(latent.shape) for latent in pairs.a), key=lambda shape: torch.Size(shape).numel())
        memory = memory_needed(model, layers, shape, 2 * batch, rank, settings.sides, moments)
        screen = _Screen(cls.hidden.unique_id, settings.steps)
        screen.say(str(memory.told()))
        try:
            with opened(model, conditioning, shape, memory.beside, throw_exception_if_processing_interrupted) as wire:
                trainer = SliderTrainer(
                    settings, wire.latents_in(pairs), wire.velocity, {layer.name: layer.module for layer in layers},
                    {layer.name: layer.shape for layer in layers}, wire.device,
                )  # fmt: skip
                identity = {
                    **settings.identity(), "selection": selection, "pairs": pairs.fingerprint,
                    "model": fingerprint(wire.model, conditioning),
                }  # fmt: skip
                run = _Run(wire, trainer, identity, _checkpoint_file(name, identity), screen, seed, reach, vae)
                resumed = run.begin(checkpoint)
                with trainer.factors.attached():
                    if checkpoint != AS_IT_IS:
                        run.train(preview_every)
                    best, size = 1.0, 1.0
                    if reach:
                        screen.say("fitting the size to the pairs")
                        best = trainer.best_multiplier(tick=throw_exception_if_processing_interrupted)
                        size = to_reach(best, reach)
                    screen.say("rendering strength −3, 0 and +3")
                    picture = run.pictures(size)
                    strip = _strip(picture)
                    screen.end(trainer, strip)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise TrainingError(
                f"Out of memory; this training {memory.told()}. Lower batch or rank, encode the pairs smaller, select fewer "
                "blocks, or use an fp8 file of the model. What was trained so far is kept."
            ) from error
        record = {**identity, "steps": trainer.done, "size": size, "count": len(pairs)}
        lora, a, b = _loras(trainer, name, record, size)
        lines, warnings = _told(trainer, pairs, model, resumed, best, size, reach, len(layers))
        lines.append(memory.told())
        curve = loss_curve(trainer.losses)
        preview = comfy_ui.PreviewImage(to_tensor(strip)[None], cls=cls).as_dict()
        shown = with_pictures(preview, report(Sentence("Trained slider"), lines, warnings), lora_modules(lora))
        return io.NodeOutput(lora, a, b, "\n".join(lines + warnings), curve, picture, ui=shown)


class _Screen:
    """What the node shows while it trains."""

    def __init__(self, node: str, total: int):
        self.node, self.bar, self.began, self.first = node, comfy.utils.ProgressBar(total), 0.0, 0
        self.said = 0.0

    def say(self, text: str) -> None:
        PromptServer.instance.send_progress_text(text, self.node)

    def step(self, trainer: SliderTrainer, picture: Image.Image | None = None) -> None:
        done, total, now = trainer.done, trainer.settings.steps, time.monotonic()
        if not self.began:
            self.began, self.first = now, done
        self.bar.update_absolute(done, total, ("JPEG", picture, 768) if picture else None)
        if now - self.said > 0.25 or done == total:
            self.said = now
            recent = trainer.losses[-25:]
            text = f"step {done} of {total}, loss {sum(recent) / len(recent):.4f}"
            if done > self.first:
                text += f", {_clock((total - done) * (now - self.began) / (done - self.first))} left"
            self.say(text)

    def end(self, trainer: SliderTrainer, picture: Image.Image) -> None:
        """On the canvas, the last preview stays in front of the result: make it the finished slider's."""
        self.bar.update_absolute(trainer.done, max(trainer.done, trainer.settings.steps), ("JPEG", picture, 768))
        self.say(f"done, {trainer.done} steps")


class _Run:
    """One training between its checkpoints."""

    def __init__(
        self, wire: TrainingWire, trainer: SliderTrainer, identity: dict[str, Any], file: Path, screen: _Screen, seed: int,
        reach: float, vae: Any,
    ):  # fmt: skip
        self.wire, self.trainer, self.identity, self.file, self.screen = wire, trainer, identity, file, screen
        self.seed, self.reach, self.vae, self.kept = seed, reach, vae, 0

    def begin(self, checkpoint: str) -> int:
        """Resume an earlier run; returns the step it had reached, 0 for a new start."""
        found = None if checkpoint == ANEW else Checkpoint.read(self.file)
        if found is None:
            if checkpoint == AS_IT_IS:
                raise TrainingError(
                    f"{self.file.name}: there is no checkpoint of a training with these settings, pairs and model. Set "
                    f'checkpoint to "{GO_ON}".'
                )
            return 0
        if found.identity != self.identity:
            raise TrainingError(f"{self.file.name}: this checkpoint is of another training. Delete it to start anew.")
        self.trainer.restore(found.tensors, found.losses)
        self.kept = self.trainer.done
        return self.kept

    def train(self, preview_every: int) -> None:
        """Take the remaining steps. On Cancel, the state is saved to a file."""
        trainer = self.trainer
        try:
            if not trainer.done:
                self._check_gradient()
            while trainer.done < trainer.settings.steps:
                throw_exception_if_processing_interrupted()
                trainer.step()
                self.screen.step(trainer)
                if preview_every and trainer.done % preview_every == 0 and trainer.done < trainer.settings.steps:
                    self.screen.step(trainer, self._look())
                if trainer.done % SAVE_EVERY == 0:
                    self._keep()
        except InterruptProcessingException:
            self._keep()
            self.screen.say(f"stopped at step {trainer.done} of {trainer.settings.steps}; kept, run again to go on")
            raise
        except comfy.model_management.OOM_EXCEPTION:
            self._keep()
            raise
        self._keep()

    def _check_gradient(self) -> None:
        try:
            self.trainer.check_gradient()
        except comfy.model_management.OOM_EXCEPTION:
            raise
        except RuntimeError as error:
            raise UnsupportedError(
                f"model: no gradient can be computed for it ({printable(error)}). Use a bf16, fp16, fp8 or GGUF file of "
                "this model, without packs that replace its layers."
            ) from error

    def _keep(self) -> None:
        if self.trainer.done > self.kept:
            Checkpoint(self.identity, self.trainer.tensors(), self.trainer.losses).write(self.file)
            self.kept = self.trainer.done

    def _look(self) -> Image.Image:
        size = 1.0
        if self.reach:
            size = to_reach(self.trainer.best_multiplier(self.trainer.settings.batch), self.reach)
        return _strip(self.pictures(size))

    def pictures(self, size: float) -> Tensor:
        """The slider at `SHOWN`, side by side: (1, height, width, 3) in 0…1."""
        self.trainer.applied([size * strength for strength in SHOWN])
        latents = self.wire.sampled(self.trainer.pairs.a[0].shape, len(SHOWN), self.seed, steps=8)
        if self.vae is not None:
            pictures = _decoded(self.vae, latents)
        else:
            previewer = get_previewer(self.wire.device, self.wire.model.latent_format)
            if previewer is None:
                previewer = _Grey()
            latents = self.wire.model.process_latent_in(latents)
            rough = [previewer.decode_latent_to_preview(latent[None]) for latent in latents]
            pictures = torch.stack([to_tensor(image.convert("RGB")) for image in rough])
        return torch.cat(list(pictures), dim=1)[None]


class _Grey:
    """For a latent format without a preview in ComfyUI: the mean of its channels."""

    def decode_latent_to_preview(self, latent: Tensor) -> Image.Image:
        plane = latent[0].float()
        plane = (plane[:, 0] if plane.ndim == 4 else plane).mean(0)
        return Image.fromarray(((plane + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy())


@torch.no_grad()
def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pictures (n, height, width, 3), decoded on the VAE's current device: loading it could push the model off the GPU."""
    weight = next(vae.first_stage_model.parameters())
    with torch.inference_mode(), interruptible(vae.first_stage_model, throw_exception_if_processing_interrupted):
        decoded = vae.first_stage_model.decode(latents.to(weight.device, weight.dtype)).float()
        decoded = vae.process_output(decoded).cpu()
    decoded = decoded[:, :, 0] if decoded.ndim == 5 else decoded
    pictures: Tensor = decoded.movedim(1, -1)[..., :3].clamp(0, 1).clone()
    return pictures


def _strip(pictures: Tensor) -> Image.Image:
    """What the node shows: enlarged, with the strengths below."""
    pixels = (pictures[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(pixels)
    scale = max(1, 768 // image.width)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (image.width, image.height + 28), "white")
    sheet.paste(image, (0, 0))
    draw, each = ImageDraw.Draw(sheet), image.width / len(SHOWN)
    texts = [f"{strength:+g}".replace("-", "−") if strength else "0" for strength in SHOWN]
    font = ImageFont.truetype(font_for(*texts), 20)
    for place, text in enumerate(texts):
        draw.text(((place + 0.5) * each, image.height + 14), text, "black", font, anchor="mm")
    return sheet


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TrainingError(f"learning_rate is {printable(text, 40)!r}: write a number, such as 2e-5.") from None


def _checkpoint_file(name: str, identity: dict[str, Any]) -> Path:
    """A checkpoint file for each training, named by the training's name and a hash of what it is."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    root = Path(folder_paths.get_output_directory()) / FOLDER
    return inside(root, f"{name}_{key}.safetensors", OutputError)


def _loras(trainer: SliderTrainer, name: str, record: dict[str, Any], size: float) -> tuple[Lora, Lora, Lora]:
    """The slider and its two sides, scaled to the fitted size."""
    sides = trainer.result()
    if trainer.settings.mode == "direct":
        lora = TrainedLora(sides[0], name, record, size)
        return lora, lora.scaled(0.5), lora.scaled(-0.5)
    a, b = (TrainedLora(side, f"{name} {which}", record, size) for side, which in zip(sides, "AB", strict=True))
    return subtract(a, b), a, b


def _told(
    trainer: SliderTrainer,
    pairs: SliderPairs,
    model: Any,
    resumed: int,
    best: float,
    size: float,
    reach: float,
    layers: int,
) -> tuple[list[Sentence], list[Sentence]]:
    s = trainer.settings
    recent = trainer.losses[-25:]
    lines = [
        Sentence("{0} steps on {1} pairs, {2} layers of rank {3}", trainer.done, len(pairs), layers, s.rank),
        Sentence(
            "noise levels {0} to {1}, {2} sample passes",
            f"{s.sigma[0]:g}",
            f"{s.sigma[1]:g}",
            2 * s.batch * trainer.done,
        ),  # fmt: skip
        Sentence("loss {0} at first, {1} at last", f"{trainer.losses[0]:.4f}", f"{sum(recent) / len(recent):.4f}"),
    ]
    if reach:
        lines.append(
            Sentence(
                "size × {0}, so that ±{1} shows what the pairs show (best fit at × {2})",
                f"{size:.3g}",
                f"{reach:g}",
                f"{best:.3g}",
            )  # fmt: skip
        )
    if resumed:
        lines.append(Sentence("resumed from step {0}", resumed))
    warnings = []
    if len(pairs) < ENOUGH:
        warnings.append(Sentence("{0} pairs are few: sliders become reliable from about {1}.", len(pairs), ENOUGH))
    if reach and at_limit(best):
        warnings.append(
            Sentence(
                "No size of this slider fits the pairs: the loss still fell at × {0}. Train longer or with more pairs; to see "
                "what it does, set reach to 0 and sweep it.",
                f"{best:.3g}",
            )  # fmt: skip
        )
    if model.patches:
        warnings.append(
            Sentence(
                "The model has patches on {0} weights. Remove step-distill LoRAs from it before training.",
                len(model.patches),
            )  # fmt: skip
        )
    if trainer.done < s.steps:
        warnings.append(Sentence("Not finished: {0} of {1} steps.", trainer.done, s.steps))
    return lines, warnings


def loss_curve(losses: list[float]) -> Tensor:
    """The loss of each step, and its mean over the last 25; (1, height, width, 3)."""
    figure = plots.new_figure(7, 3.6)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    means = [sum(losses[max(0, i - 24) : i + 1]) / len(losses[max(0, i - 24) : i + 1]) for i in range(len(losses))]
    axes.plot(steps, losses, color="#c3c8d2", linewidth=1, label="each step")
    axes.plot(steps, means, color="#3b6fb6", linewidth=2, label="mean of 25")
    axes.set_title("loss, both sides together", loc="left", color=plots.INK, fontsize=11, fontweight="bold")
    axes.set_xlabel("step", color=plots.INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=plots.INK, labelsize=9)
    axes.grid(color="#e7e9ee", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return plots.to_image(figure)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


NODES = [TrainSlider]
