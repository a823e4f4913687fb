"""Training a slider: the objective by dense weights, gradients by finite differences, and nothing left to chance."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import difflora
from difflora.errors import FileError, OutputError, PairError, RecipeError, TensorError, TrainingError, UnsupportedError
from difflora.lora.trained import TrainedLora
from difflora.saving.recipes import SavedRecipe, find_in, from_recipe, told
from difflora.training.checkpoint import Checkpoint
from difflora.training.draws import Draws
from difflora.training.latents import SliderPairs
from difflora.training.magnitude import at_limit, best_multiplier, to_reach
from difflora.training.optimizers import AdamW, Lion
from difflora.training.slider import Settings, SliderTrainer

SHAPE = (2, 3, 3)


class Small(nn.Module):
    """A velocity model with two attention layers and one that is none, over latents of 18 numbers."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.q, self.o, self.rest = nn.Linear(18, 12), nn.Linear(12, 18), nn.Linear(18, 18)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
        self.requires_grad_(False)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (self.o(torch.tanh(self.q(flat))) + sigma[:, None] * self.rest(flat)).view_as(x)


def pairs(count: int = 5, seed: int = 1) -> SliderPairs:
    random = torch.Generator().manual_seed(seed)
    b = [torch.randn(SHAPE, generator=random) for _ in range(count)]
    return SliderPairs(tuple(map(str, range(count))), tuple(x + 1.5 for x in b), tuple(b))


def trainer(model: nn.Module | None = None, **settings: object) -> SliderTrainer:
    model = model or Small()
    layers = {f"blocks.0.attn.{name}": getattr(model, name) for name in ("q", "o")}
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    return SliderTrainer(Settings(**{"batch": 2, "warmup": 0} | settings), pairs(), model, layers, shapes)


def run(one: SliderTrainer, steps: int) -> SliderTrainer:
    with one.factors.attached():
        for _ in range(steps):
            one.step()
    return one


def randomise(one: SliderTrainer, seed: int = 3) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in one.factors.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)


def by_hand(one: SliderTrainer, changes: list[dict[str, Tensor]]) -> float:
    """The objective of both sides in float64, the changes put into the weights of a copy of the model."""
    draw = one.draws.at(0)
    total = 0.0
    for latents, change in zip((one.pairs.a, one.pairs.b), changes, strict=True):
        model = Small().double()
        for name, delta in change.items():
            getattr(model, name.rpartition(".")[2]).weight.data += delta
        clean = torch.stack([latents[i] for i in draw.indices]).double()
        noise, sigma = draw.noise.double(), draw.sigma.double()
        line = sigma.view(-1, 1, 1, 1)
        total += float((model((1 - line) * clean + line * noise, sigma) - (noise - clean)).square().mean())
    return total


def products(factors: dict[str, tuple[Tensor, Tensor]], scale: float) -> dict[str, Tensor]:
    return {name: scale * up.detach().double() @ down.detach().double() for name, (up, down) in factors.items()}


def test_direct_adds_half_of_the_product_on_a_and_takes_it_away_on_b() -> None:
    one = trainer(mode="direct")
    randomise(one)
    with one.factors.attached():
        loss = float(one.loss(one.draws.at(0)).detach())
    (factors,) = one.factors.sides
    assert loss == pytest.approx(by_hand(one, [products(factors, 0.5), products(factors, -0.5)]), rel=1e-5)
    # Half of each factor would be a quarter of the change.
    assert loss != pytest.approx(by_hand(one, [products(factors, 0.25), products(factors, -0.25)]), rel=1e-3)


def test_pair_trains_each_side_on_its_own_pictures() -> None:
    one = trainer(mode="pair")
    randomise(one)
    with one.factors.attached():
        loss = float(one.loss(one.draws.at(0)).detach())
    a, b = one.factors.sides
    assert loss == pytest.approx(by_hand(one, [products(a, 1), products(b, 1)]), rel=1e-5)


@pytest.mark.parametrize("mode", ["direct", "pair"])
def test_gradients_agree_with_finite_differences(mode: str) -> None:
    one = trainer(mode=mode)
    randomise(one)
    with one.factors.attached():
        one.loss(one.draws.at(0)).backward()
        gradients = [parameter.grad for parameter in one.factors.parameters()]
        random = torch.Generator().manual_seed(0)
        for parameter, gradient in zip(one.factors.parameters(), gradients, strict=True):
            direction = torch.randn(parameter.shape, generator=random)
            values = []
            for sign in (1, -1):
                parameter.data += sign * 1e-2 * direction
                values.append(float(one.loss(one.draws.at(0)).detach()))
                parameter.data -= sign * 1e-2 * direction
            assert (values[0] - values[1]) / 2e-2 == pytest.approx(
                float((gradient * direction).sum()), rel=2e-2, abs=1e-4
            )


def test_the_sides_of_a_pair_start_alike_and_see_the_same_noise() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    model = Small()
    one = trainer(model, mode="pair", learning_rate=1e-3)
    a, b = one.factors.sides
    assert all(torch.equal(a[name][i], b[name][i]) for name in a for i in (0, 1))
    one.velocity = lambda x, sigma: (seen.append((x, sigma)), model(x, sigma))[1]
    run(one, 3)
    for step, (x, sigma) in enumerate(seen):
        draw = one.draws.at(step)
        half, line = len(draw.indices), draw.sigma.view(-1, 1, 1, 1)
        assert torch.equal(sigma[:half], sigma[half:])
        shift = torch.stack([one.pairs.a[i] - one.pairs.b[i] for i in draw.indices]) * (1 - line)
        assert torch.allclose(x[:half] - x[half:], shift, atol=1e-6)  # what is left without the pictures is one noise


def test_a_pair_is_what_two_trainings_alone_would_be() -> None:
    both = run(trainer(mode="pair", optimizer="adamw"), 4)
    for side in (0, 1):
        alone = trainer(mode="pair", optimizer="adamw")
        latents = (alone.pairs.a, alone.pairs.b)[side]
        alone.pairs = SliderPairs(alone.pairs.names, latents, latents)
        run(alone, 4)
        for mine, other in zip(both.factors.parameters(side), alone.factors.parameters(side), strict=True):
            assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("mode", ["direct", "pair"])
@pytest.mark.parametrize("optimizer", ["lion", "adamw"])
def test_training_lowers_the_loss(mode: str, optimizer: str) -> None:
    one = trainer(mode=mode, optimizer=optimizer, learning_rate=1e-2, rank=2)

    def on_the_same_draws() -> float:
        with torch.no_grad(), one.factors.attached():
            return sum(float(one.loss(draw)) for draw in one.draws.fixed(5))

    before = on_the_same_draws()
    run(one, 80)
    assert on_the_same_draws() < 0.95 * before


def test_the_same_seed_is_the_same_to_the_last_bit_and_another_is_not() -> None:
    first, again, other = (run(trainer(seed=seed), 5) for seed in (7, 7, 8))
    assert first.losses == again.losses != other.losses
    assert all(torch.equal(a, b) for a, b in zip(first.factors.parameters(), again.factors.parameters(), strict=True))


def test_nobody_elses_random_numbers_move() -> None:
    model = Small()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = run(trainer(model), 3)
    with one.factors.attached():
        one.best_multiplier()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_not_trained_stays_and_the_hooks_go() -> None:
    model = Small()
    weights, x = copy.deepcopy(model.state_dict()), torch.ones(4, *SHAPE)
    plain = model(x, torch.ones(4))
    one = trainer(model)
    run(one, 3)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x, torch.ones(4)), plain)
    with pytest.raises(KeyboardInterrupt), one.factors.attached():
        raise KeyboardInterrupt
    assert torch.equal(model(x, torch.ones(4)), plain)


def test_a_step_that_was_cancelled_has_not_happened() -> None:
    model = Small()
    one = run(trainer(model), 2)
    state = {name: tensor.clone() for name, tensor in one.tensors().items()}

    def cancelled(x: Tensor, sigma: Tensor) -> Tensor:
        model(x, sigma)
        raise KeyboardInterrupt

    one.velocity = cancelled
    with pytest.raises(KeyboardInterrupt):
        run(one, 1)
    assert one.done == 2 and all(torch.equal(value, state[name]) for name, value in one.tensors().items())


@pytest.mark.parametrize("settings", [{}, {"mode": "pair", "optimizer": "adamw"}, {"average": 0.9}])
def test_a_resumed_training_is_one_that_was_never_stopped(tmp_path, settings) -> None:
    whole = run(trainer(steps=6, **settings), 6)
    first = run(trainer(steps=3, **settings), 3)
    path = tmp_path / "made/here.safetensors"
    Checkpoint(first.settings.identity(), first.tensors(), first.losses).write(path)
    second = trainer(steps=6, **settings)
    read = Checkpoint.read(path)
    assert read.identity == json.loads(json.dumps(second.settings.identity()))
    second.restore(read.tensors, read.losses)
    run(second, 3)
    assert second.losses == whole.losses
    assert all(torch.equal(value, whole.tensors()[name]) for name, value in second.tensors().items())


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    assert Checkpoint.read(path) is None
    Checkpoint({"of": 1}, {"x": torch.ones(3)}, [0.5]).write(path)

    class Broken(torch.Tensor):
        def detach(self):
            raise OutputError("the disk is full")

    with pytest.raises(OutputError):
        Checkpoint({"of": 2}, {"x": torch.zeros(3).as_subclass(Broken)}, []).write(path)
    assert Checkpoint.read(path).losses == [0.5]
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]
    difflora.save(TrainedLora({"blocks.0.q": (torch.ones(4, 1), torch.ones(1, 4))}, "x", {}), path, overwrite=True)
    with pytest.raises(FileError, match="Delete it"):
        Checkpoint.read(path)


def test_another_trainings_checkpoint_is_refused() -> None:
    one = trainer()
    with pytest.raises(TrainingError, match="another training"):
        one.restore(trainer(rank=2).tensors(), [])


def test_every_pair_is_seen_once_in_an_epoch_and_shapes_are_not_mixed() -> None:
    shapes = [(1, 2)] * 5 + [(2, 1)] * 4
    draws = Draws(shapes, 2, (0.75, 1.0), seed=0)
    assert draws.steps_an_epoch == 5
    for epoch in range(3):
        batches = [draws.at(epoch * 5 + step) for step in range(5)]
        assert {i for draw in batches for i in draw.indices} == set(range(9))
        assert all(len({shapes[i] for i in draw.indices}) == 1 and len(set(draw.indices)) == 2 for draw in batches)
    assert [draws.at(i).indices for i in range(5)] != [draws.at(5 + i).indices for i in range(5)]


def test_noise_levels_are_uniform_between_the_two() -> None:
    draws = Draws([(1,)] * 8, 4, (0.6, 0.9), seed=2)
    levels = torch.stack([draws.at(step).sigma for step in range(500)])
    assert levels.min() >= 0.6 and levels.max() <= 0.9
    assert torch.allclose(levels.mean(0), torch.full((4,), 0.75), atol=0.015)
    assert abs(float(levels.std()) - 0.3 / 12**0.5) < 0.003
    # One from each quarter: a step never has only high noise, or only low.
    quarters = ((levels - 0.6) / 0.3 * 4).clamp(max=3.999).long().sort(dim=1).values
    assert torch.equal(quarters, torch.arange(4).expand(500, 4))


def test_lion_and_adamw_take_the_steps_that_their_papers_say() -> None:
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, generator=random) for _ in range(5)]
    own, theirs = (torch.ones(6, requires_grad=True) for _ in range(2))
    mine, reference = AdamW([own]), torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.01, foreach=False)
    for number, gradient in enumerate(gradients, 1):
        own.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step(0.01, number)
        reference.step()
    assert torch.allclose(own, theirs, atol=1e-6)
    x, momentum, parameter = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64), torch.ones(6)
    parameter.requires_grad_(True)
    lion = Lion([parameter])
    for number, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.clone()
        lion.step(0.01, number)
        x = x - 0.01 * torch.sign(0.9 * momentum + 0.1 * gradient.double())
        momentum = 0.99 * momentum + 0.01 * gradient.double()
    assert torch.allclose(parameter.double(), x, atol=1e-6)


def test_a_layer_that_does_not_see_the_batch_is_refused() -> None:
    model = Small()
    one = trainer(model)
    one.velocity = lambda x, sigma: model(x.repeat(2, 1, 1, 1), sigma.repeat(2))[: len(x)]
    with pytest.raises(UnsupportedError, match="blocks.0.attn.q"):
        run(one, 1)


def test_a_loss_that_is_no_number_ends_the_training_before_the_step() -> None:
    one = trainer()
    one.velocity = lambda x, sigma: (
        one.layers["blocks.0.attn.o"](one.layers["blocks.0.attn.q"](x.flatten(1))).view_as(x) * torch.nan
    )
    with pytest.raises(TrainingError, match="learning rate"):
        run(one, 1)
    assert one.done == 0


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5, 11.0])
def test_the_best_multiplier_of_a_least_squares_fit_is_found(scale: float) -> None:
    asked: list[float] = []
    found = best_multiplier(lambda m: (asked.append(m), 3 + (m - scale) ** 2 / scale**2)[1])
    assert found == pytest.approx(scale, rel=1e-6)
    assert len(asked) == len(set(asked)) < 10


def test_calibration_finds_the_size_at_which_the_pairs_are_met() -> None:
    one = run(trainer(learning_rate=1e-2), 60)
    (up, down) = one.factors.sides[0]["blocks.0.attn.o"]
    with one.factors.attached():
        full = one.best_multiplier()
        with torch.no_grad():
            for up, _ in one.factors.sides[0].values():
                up *= 0.25
        quarter = one.best_multiplier()
    assert quarter == pytest.approx(4 * full, rel=1e-3)
    assert to_reach(full, 3) == pytest.approx(full / 6)


def test_the_size_of_a_pairs_slider_does_not_depend_on_what_its_sides_share() -> None:
    """The slider is A − B: what both learned is not in it, and must not shrink it."""
    direct = run(trainer(learning_rate=1e-2), 60)
    with direct.factors.attached():
        wanted = direct.best_multiplier()

    def size(shared: float) -> float:
        one, random = trainer(mode="pair"), torch.Generator().manual_seed(3)
        a, b = one.factors.sides
        with torch.no_grad():
            for name, (up, down) in direct.factors.sides[0].items():
                both = shared * torch.randn(up.shape, generator=random)
                for side, sign in ((a, 1), (b, -1)):
                    side[name][0].copy_(both + sign * up / 2)
                    side[name][1].copy_(down)
        with one.factors.attached():
            return one.best_multiplier()

    assert not at_limit(wanted)
    assert size(0.0) == pytest.approx(wanted, rel=1e-4)
    assert size(5.0) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("loss", [lambda m: m, lambda m: -m])
def test_a_search_for_the_size_that_ends_at_its_limit_says_so(loss) -> None:
    assert at_limit(best_multiplier(loss))
    assert not at_limit(best_multiplier(lambda m: (m - 3) ** 2))


def test_too_few_pairs_other_shapes_and_what_is_not_finite_are_refused() -> None:
    good = pairs(2)
    with pytest.raises(PairError, match="at least 2"):
        SliderPairs(("0",), good.a[:1], good.b[:1])
    with pytest.raises(PairError, match="same size"):
        SliderPairs(good.names, good.a, (good.b[0], torch.zeros(1)))
    with pytest.raises(PairError, match="finite"):
        SliderPairs(good.names, good.a, (good.b[0], good.b[1] * torch.nan))
    assert pairs(3, seed=1).fingerprint == pairs(3, seed=1).fingerprint != pairs(3, seed=2).fingerprint


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "both"}, {"optimizer": "sgd"}, {"rank": 0}, {"sigma": (0.9, 0.8)}, {"sigma": (0.5, 1.5)},
     {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"average": 1.0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(TrainingError):
        Settings(**wrong)


# The result as a LoRA


def lora(seed: int = 0, **changes: object) -> TrainedLora:
    one = run(trainer(seed=seed), 2)
    return TrainedLora(one.result()[0], "my slider", {"steps": 2, "σ": [0.75, 1]}, **changes)


def test_a_trained_lora_keeps_its_factors_and_folds_its_scale_in() -> None:
    one = run(trainer(), 2)
    made = TrainedLora(one.result()[0], "x", {}, scale=0.5)
    for name, (up, down) in one.result()[0].items():
        assert torch.equal(made[name].up, up.detach() * 0.5) and torch.equal(made[name].down, down.detach())
    before = made["blocks.0.attn.q"].up.clone()
    run(one, 1)
    assert torch.equal(made["blocks.0.attn.q"].up, before)  # a result, not a view of what is still being trained


def test_its_fingerprint_is_of_content() -> None:
    assert lora().fingerprint == lora().fingerprint != lora(seed=1).fingerprint
    assert lora().fingerprint != lora(scale=2.0).fingerprint


def test_its_recipe_says_how_it_was_trained_and_that_files_cannot_bring_it_back(tmp_path) -> None:
    path = difflora.save(difflora.rerank(lora().select("attn"), difflora.FixedRank(1)), tmp_path / "x.safetensors")
    saved = SavedRecipe.of_file(path)
    assert "my slider" in told(saved.of) and "trained" in told(saved.of)
    assert saved.of["of"]["of"]["settings"] == {"steps": 2, "σ": [0.75, 1]}
    with pytest.raises(RecipeError, match="my slider.*trained.*cannot be rebuilt"):
        from_recipe(saved.of, find_in(tmp_path))


def test_a_saved_trained_lora_is_read_back_bit_for_bit(tmp_path) -> None:
    made = lora()
    read = difflora.load(difflora.save(made, tmp_path / "x.safetensors"))
    assert read.names == made.names
    for name in made:
        assert torch.equal(read[name].up, made[name].up) and torch.equal(read[name].down, made[name].down)


def test_factors_that_are_not_finite_are_no_lora() -> None:
    with pytest.raises(TensorError, match="learning rate"):
        TrainedLora({"blocks.0.q": (torch.full((2, 1), torch.inf), torch.ones(1, 2))}, "x", {})


def test_a_gradient_that_is_the_slope_of_the_loss_passes_and_changes_nothing() -> None:
    for mode in ("direct", "pair"):
        one = trainer(mode=mode)
        before = [parameter.detach().clone() for parameter in one.factors.parameters()]
        with one.factors.attached():
            one.check_gradient()
        assert all(torch.equal(a, b) for a, b in zip(before, one.factors.parameters(), strict=True))


@pytest.mark.parametrize("apart", [1.0, 0.1, 0.03, 0.01])
def test_the_gradient_passes_on_pairs_that_hardly_differ(apart: float) -> None:
    """Their gradient is small, so a step that should change the loss by half a percent is far beyond where it is linear."""
    one = trainer()
    one.pairs = SliderPairs(one.pairs.names, tuple(x + apart for x in one.pairs.b), one.pairs.b)
    with one.factors.attached():
        one.check_gradient()


@pytest.mark.parametrize("what", ["none", "of another layer", "too large"])
def test_a_model_whose_gradient_is_wrong_is_refused_before_the_first_step(what: str) -> None:
    model = Small()

    class Wrong(torch.autograd.Function):
        """As a kernel without a backward, or one whose buffers were used again: the forward is right."""

        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:
            return {"none": gradient * 0, "of another layer": gradient.flip(0, 1), "too large": gradient * 3}[what]

    one = trainer(model)
    one.velocity = lambda x, sigma: Wrong.apply(model(x, sigma))
    with pytest.raises(TrainingError, match="slope"), one.factors.attached():
        one.check_gradient()
    assert one.done == 0
