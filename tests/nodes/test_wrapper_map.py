"""How a map reaches a model of WanVideoWrapper's kind. Runs without ComfyUI; tests/e2e/test_wanvideo_map.py has the real one."""

import copy
import gc

import pytest
import torch

from tests.pack_modules import pack_module

wrapper_map = pack_module("nodes.slider.wrapper_map")
errors = pack_module("difflora.errors")
curve = pack_module("difflora.steering.curve")
slider_map = pack_module("difflora.steering.slider_map")

FRAMES, HEIGHT, WIDTH = 3, 2, 4


class Layer(torch.nn.Module):
    """As the wrapper's: LoRAs with a strength each, in buffers that the sampler registers when it starts."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def start(self, *strengths):
        for index, strength in enumerate(strengths):
            self.register_buffer(f"_lora_strength_{index}", torch.tensor([strength]))

    def forward(self, x):
        return x * (1 + self.gain * self._lora_strength_1[0] + self._lora_strength_0[0])


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Layer(gain) for gain in (0.25, -0.5))
        self.enable_teacache = False

    def forward(self, x, t, current_step=0, last_step=False, transformer_options={}, y=None, reverse_time=False):  # noqa: B006
        for block in self.blocks:
            x = [block(part) for part in x]
        return x, None, None

    def start(self, style, strength):
        for block in self.blocks:
            block.start(style, strength)


def a_map(steps="", frames="", mask=None):
    return slider_map.SliderMap(curve.Curve.parse(steps, "steps"), curve.Curve.parse(frames, "frames"), mask, 0)


def half():
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    return mask


class Run:
    """A model with a map, as after the node; `told` collects what it says."""

    def __init__(self, map, strength=2.0, outside=0.0, frames=None):
        self.transformer, self.options, self.told = Transformer(), {}, []
        mapped = wrapper_map.MappedForward(
            {"blocks.0": 1, "blocks.1": 1},
            map,
            strength,
            outside,
            1.0,
            frames,
            lambda line: self.told.append(str(line)),
        )
        wrapper_map.put_map(self.transformer, self.options, mapped)
        self.transformer.start(0.125, strength)
        self.x = torch.randn(16, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, sigma=1.0, **more):
        with torch.no_grad():
            options = copy.deepcopy(self.options)
            return self.transformer(x=[self.x], t=torch.tensor([sigma * 1000]), transformer_options=options, **more)[0][
                0
            ]

    def plain(self, strength):
        other = Transformer()
        other.start(0.125, strength)
        with torch.no_grad():
            return other(x=[self.x], t=torch.tensor([1000.0]))[0][0]


def test_weights_1_and_0_are_the_passes_themselves_and_calls_without_a_map_see_none():
    run = Run(a_map(mask=half()), 2.0, -1.0)
    got = run()
    assert torch.equal(got[..., :2], run.plain(2.0)[..., :2])
    assert torch.equal(got[..., 2:], run.plain(-1.0)[..., 2:])
    run.transformer.start(0.125, 0.5)  # the next sampler, of another patcher
    with torch.no_grad():
        assert torch.equal(run.transformer(x=[run.x], t=torch.tensor([1000.0]))[0][0], run.plain(0.5))
    run.transformer.start(0.125, 2.0)
    assert torch.equal(run(), got)


def test_a_curve_over_the_steps_goes_by_noise_in_one_pass_each():
    run = Run(a_map(steps="50:0, 50:1"))
    assert torch.equal(run(sigma=0.75, current_step=0), run.plain(0.0))
    assert torch.equal(run(sigma=0.25, current_step=1, last_step=True), run.plain(2.0))
    assert run.told == ["2 steps: 2 × 1 pass"]


def test_what_is_told_counts_each_step_once_in_every_run():
    """With CFG and context windows, a step is several calls."""
    run = Run(a_map(steps="50:0, 50:1", mask=half()), 2.0)
    for _ in range(2):
        for step, sigma in enumerate((1.0, 0.75, 0.25)):
            for _ in range(2):
                run(sigma=sigma, current_step=step, last_step=step == 2)
    assert set(run.told) == {"3 steps: 2 × 1 pass, 1 × 2 passes"}


def test_a_run_of_one_step_is_told_again_when_another_follows():
    run = Run(a_map(mask=half()), 2.0)
    for runs in (1, 2):
        run(current_step=0, last_step=True)
        assert run.told == ["1 step: 1 × 2 passes"] * runs


def test_a_clip_that_runs_backwards_has_its_map_turned_round():
    run = Run(a_map(frames="0:0, 100:1"), frames=FRAMES)
    forwards = run()
    assert torch.equal(forwards[:, 0], run.plain(0.0)[:, 0])
    backwards = run(reverse_time=True)
    assert torch.equal(backwards[:, -1], run.plain(0.0)[:, -1])
    assert not torch.equal(backwards[:, 0], run.plain(0.0)[:, 0])


def test_a_cancel_between_the_passes_leaves_no_trace_for_the_next_sampler():
    run = Run(a_map(mask=half()), 2.0, -2.0)
    calls = []

    def cancel(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = run.transformer.blocks[1].register_forward_pre_hook(cancel)
    with pytest.raises(KeyboardInterrupt):
        run()
    handle.remove()
    run.transformer.start(0.125, 0.0)
    with torch.no_grad():
        assert torch.equal(run.transformer(x=[run.x], t=torch.tensor([1000.0]))[0][0], run.plain(0.0))
    run.transformer.start(0.125, 2.0)
    assert torch.equal(run()[..., :2], run.plain(2.0)[..., :2])


def test_the_wrap_goes_with_the_last_map():
    run = Run(a_map(mask=half()))
    second = {}
    wrapper_map.put_map(run.transformer, second, copy.copy(run.options[wrapper_map.SLIDER_MAP]))
    assert "forward" in run.transformer.__dict__
    run.options.clear()
    gc.collect()
    assert "forward" in run.transformer.__dict__
    second.clear()
    gc.collect()
    assert "forward" not in run.transformer.__dict__


def test_a_compiled_block_is_found_and_compiled_once_for_all_strengths():
    run = Run(a_map(mask=half()), 2.0, -1.0)
    expected = run()
    import torch._dynamo.testing  # it takes seconds

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    for index, block in enumerate(run.transformer.blocks):
        run.transformer.blocks[index] = torch.compile(block, backend=counter)
    first = run()
    compiled = counter.frame_count
    assert compiled == 2  # one for each block, whatever the strength
    assert torch.equal(first, expected) and torch.equal(run(), expected)
    assert counter.frame_count == compiled


class TestRefused:
    def test_a_cache_between_the_passes_but_not_for_steps_alone(self):
        run = Run(a_map(mask=half()))
        run.transformer.enable_teacache = True
        with pytest.raises(errors.UnsupportedError, match="TeaCache is on this model"):
            run()
        level = Run(a_map(steps="50:0, 50:1"))
        level.transformer.enable_teacache = True
        level()

    def test_a_part_of_the_clip(self):
        with pytest.raises(errors.UnsupportedError, match="3 latent frames at a time, but the clip has 7"):
            Run(a_map(frames="0:0, 100:1"), frames=7)()
        Run(a_map(frames="0:0, 100:1"), frames=3)()

    @pytest.mark.parametrize("strengths", [(0.125,), (0.125, 0.5), (0.125, [2.0, 2.0])])
    def test_a_lora_that_is_not_where_the_node_put_it(self, strengths):
        run = Run(a_map(mask=half()))
        for block in run.transformer.blocks:
            del block._lora_strength_1
            block.start(strengths[0])
            if len(strengths) > 1:
                block.register_buffer("_lora_strength_1", torch.tensor(strengths[1]).reshape(-1))
        with pytest.raises(errors.UnsupportedError, match="not where this node put it"):
            run()

    def test_a_transformer_that_is_not_told_its_options(self):
        class Old(torch.nn.Module):
            def forward(self, x):
                return x

        with pytest.raises(errors.UnsupportedError, match="Update WanVideoWrapper"):
            wrapper_map.put_map(Old(), {}, object())


@pytest.mark.parametrize(
    ("embeds", "frames"),
    [({"target_shape": (16, 21, 60, 80), "num_frames": 81}, 21), ({"num_frames": 81}, 21), ({"num_frames": 1}, 1)],
)
def test_the_latent_frames_of_image_embeds(embeds, frames):
    assert wrapper_map.latent_frames(embeds) == frames


@pytest.mark.parametrize("embeds", [None, {}])
def test_embeds_that_say_nothing_are_an_error(embeds):
    with pytest.raises(errors.InputError, match="Wire the sampler's image_embeds"):
        wrapper_map.latent_frames(embeds)
