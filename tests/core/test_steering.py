"""Weights of a slider over steps, frames and a mask, and the passes that they need."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflora.errors import InputError
from difflora.steering.curve import MOST_POINTS, Curve, lerp
from difflora.steering.passes import Passes
from difflora.steering.schedule import flow_percent, percent_of, sampled, step_strengths
from difflora.steering.slider_map import SliderMap, clip_frames, latent_means

CASES = json.loads((Path(__file__).parents[1] / "data/curves.json").read_text("utf-8"))
LEVEL = Curve.parse("", "frames")

weights = st.floats(0, 1)
strengths = st.floats(-10, 10).map(lambda value: round(value, 3))


class TestCurve:
    @pytest.mark.parametrize("case", CASES["curves"], ids=lambda case: repr(case["text"]))
    def test_worked_cases(self, case):
        curve = Curve.parse(case["text"], "steps")
        assert [list(point) for point in curve.points] == case["points"]
        for position, weight in case["at"]:
            assert curve.at(position) == pytest.approx(weight, abs=1e-12)

    @pytest.mark.parametrize("text", CASES["errors"])
    def test_what_is_no_curve_is_an_error_that_names_the_input(self, text):
        with pytest.raises(InputError, match="^steps"):
            Curve.parse(text, "steps")

    def test_number_of_points_is_bounded(self):
        points = [f"{i / 2:g}:1" for i in range(MOST_POINTS)]
        assert len(Curve.parse(",".join(points), "steps").points) == MOST_POINTS
        with pytest.raises(InputError, match=f"at most {MOST_POINTS}"):
            Curve.parse(",".join([*points, "100:1"]), "steps")

    @given(st.lists(st.tuples(st.floats(0, 100), weights), min_size=1, max_size=8), st.floats(0, 100))
    def test_stays_within_the_weights_of_its_points_and_meets_them(self, points, position):
        points = sorted(points, key=lambda point: point[0])
        curve = Curve(tuple(points))
        values = [weight for _, weight in points]
        assert min(values) <= curve.at(position) <= max(values)
        last = dict(points)  # of several points at one position the last counts
        assert all(curve.at(x) == weight for x, weight in last.items())
        assert curve.is_level == (len(set(values)) == 1)

    @given(strengths, strengths)
    def test_lerp_is_exact_at_both_ends(self, start, end):
        assert lerp(start, end, 0.0) == start and lerp(start, end, 1.0) == end


class TestField:
    def test_frames_are_averaged_over_the_latent_frames_that_hold_them(self):
        """81 frames are 21 latent frames: latent 0 is frame 0, latent j is frames 4j-3 to 4j."""
        field = SliderMap(LEVEL, Curve.parse("0:0, 100:1", "frames")).field(21, 2, 3, 4)
        for latent in range(21):
            held = [0] if latent == 0 else range(4 * latent - 3, 4 * latent + 1)
            mean = sum(frame / 80 for frame in held) / len(held)
            assert torch.allclose(field[latent], torch.tensor(mean, dtype=torch.float64), atol=1e-12)

    @pytest.mark.parametrize(("frames", "stride", "clip"), [(1, 4, 1), (2, 4, 5), (21, 4, 81), (3, 8, 17), (5, 1, 5)])
    def test_number_of_frames(self, frames, stride, clip):
        assert clip_frames(frames, stride) == clip
        values = torch.arange(clip, dtype=torch.float64)
        means = latent_means(values, stride)
        assert len(means) == frames
        assert means[0] == 0 and means[-1] == (values[-stride:].mean() if frames > 1 else 0)

    def test_one_picture_is_the_same_for_every_frame_and_averaged_over_latent_pixels(self):
        mask = torch.zeros(1, 16, 24)
        mask[:, :, :12] = 1
        field = SliderMap(LEVEL, LEVEL, mask, feather=0).field(3, 2, 3, 4)
        assert torch.equal(field, torch.tensor([1, 0.5, 0], dtype=torch.float64).expand(3, 2, 3))

    def test_a_picture_for_each_frame_of_the_clip_or_of_the_latent(self):
        per_frame = torch.zeros(9, 4, 4)
        per_frame[5:] = 1  # frames 5 to 8 are latent frame 2
        per_frame[4] = 1  # one of the four in latent frame 1
        field = SliderMap(LEVEL, LEVEL, per_frame, 0).field(3, 2, 2, 4)
        assert field[:, 0, 0].tolist() == [0, 0.25, 1]
        assert torch.equal(SliderMap(LEVEL, LEVEL, per_frame[:3], 0).field(3, 2, 2, 4), torch.zeros(3, 2, 2).double())
        longer = torch.cat([per_frame, torch.ones(3, 4, 4)])  # 12 frames make 3 latent frames too
        assert torch.equal(SliderMap(LEVEL, LEVEL, longer, 0).field(3, 2, 2, 4), field)

    @pytest.mark.parametrize("pictures", [2, 4, 8, 13, 14])
    def test_another_number_of_pictures_is_refused_with_both_numbers(self, pictures):
        steered = SliderMap(LEVEL, LEVEL, torch.ones(pictures, 4, 4))
        with pytest.raises(InputError, match=f"{pictures} pictures, but the clip has 9 frames"):
            steered.field(3, 2, 2, 4)

    def test_a_picture_takes_no_mask_of_several(self):
        with pytest.raises(InputError, match="3 pictures, but the clip has 1 frames"):
            SliderMap(LEVEL, LEVEL, torch.ones(3, 4, 4)).field(1, 2, 2, 4)

    @pytest.mark.parametrize("feather", [0, 1, 2, 5])
    def test_feather_is_a_straight_ramp_to_both_sides(self, feather):
        mask = torch.zeros(1, 20, 20)
        mask[:, :, 10:] = 1
        row = SliderMap(LEVEL, LEVEL, mask, feather).field(1, 20, 20, 4)[0, 7]
        wide = 2 * feather
        ramp = [(i + 1) / (wide + 1) for i in range(wide)]
        assert row.tolist() == pytest.approx([0] * (10 - feather) + ramp + [1] * (10 - feather))
        assert row[0] == 0 and row[-1] == 1

    @given(
        st.integers(1, 4),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(1, 8),
        st.integers(0, 3),
        st.integers(1, 40),
    )
    def test_shape_and_range_for_any_size_and_exactly_1_under_a_full_mask(
        self, frames, height, width, stride, feather, side
    ):
        full = SliderMap(LEVEL, LEVEL, torch.ones(1, side, side + 1), feather).field(frames, height, width, stride)
        assert torch.equal(full, torch.ones(frames, height, width, dtype=torch.float64))
        random = torch.rand(1, side, side + 1, generator=torch.Generator().manual_seed(side))
        field = SliderMap(LEVEL, Curve.parse("0:0.3, 100:1", ""), random, feather).field(frames, height, width, stride)
        assert field.shape == (frames, height, width) and 0 <= field.min() and field.max() <= 1

    def test_values_beyond_0_and_1_are_clamped_and_no_numbers_are_refused(self):
        field = SliderMap(LEVEL, LEVEL, torch.tensor([[[-3.0, 7.0]]]), 0).field(1, 1, 2, 4)
        assert field.tolist() == [[[0, 1]]]
        for wrong in (torch.full((1, 2, 2), float("nan")), torch.ones(2, 2), torch.ones(0, 2, 2)):
            with pytest.raises(InputError, match="^mask"):
                SliderMap(LEVEL, LEVEL, wrong)
        with pytest.raises(InputError, match="^feather"):
            SliderMap(LEVEL, LEVEL, None, 33)

    def test_level_means_one_strength_a_step(self):
        assert SliderMap(Curve.parse("0:0, 50:1", ""), Curve.parse("0.5", "")).is_level
        assert not SliderMap(LEVEL, Curve.parse("0:0, 50:1", "")).is_level
        assert not SliderMap(LEVEL, LEVEL, torch.ones(1, 2, 2)).is_level


def field(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)


class TestPasses:
    @pytest.mark.parametrize(
        ("values", "step", "strength", "outside", "expected"),
        [
            ((1, 1), 1, 3, 0, (3,)),
            ((0, 0), 1, 3, 0, (0,)),
            ((0, 0), 1, 3, -3, (-3,)),
            ((0.5, 0.5), 1, 3, 0, (1.5,)),
            ((0, 1), 1, 3, 0, (0, 3)),
            ((0, 1), 0, 3, 0, (0,)),
            ((0, 1), 0.5, 3, 0, (0, 1.5)),
            ((0, 1), 1, -3, 0, (-3, 0)),
            ((0, 1), 1, 2, 1, (1, 2)),
            ((0, 1), 1, 3, -3, (-3, 3)),  # a hard mask: nothing lies in between
            ((0, 0.5, 1), 1, 3, -3, (-3, 0, 3)),
            ((0, 0.25, 1), 1, 3, -3, (-3, 0, 3)),
            ((0.6, 0.8, 1), 1, 3, -3, (0.6, 3)),
            ((0, 0.2, 0.4), 1, 3, -3, (-3, -0.6)),
            ((0.2, 1), 1, 3, 3, (3,)),
            ((0.2, 0.8), 1, 0, 0, (0,)),
        ],
    )
    def test_only_the_passes_that_some_weight_needs(self, values, step, strength, outside, expected):
        assert Passes.of(field(*values), step, strength, outside).strengths == pytest.approx(expected, abs=1e-12)

    @given(weights, weights, strengths, strengths)
    def test_ends_are_the_strengths_themselves(self, step, weight, strength, outside):
        assert Passes.of(field(1, 1), 1.0, strength, outside).strengths == (strength,)
        assert Passes.of(field(0, 0), step, strength, outside).strengths == (outside,)
        passes = Passes.of(field(0, weight, 1), 1.0, strength, outside)
        if strength != outside:
            assert {passes.strengths[0], passes.strengths[-1]} == {strength, outside}

    @given(st.lists(weights, min_size=1, max_size=6), weights, strengths, strengths)
    def test_a_model_that_is_linear_in_the_strength_is_met_everywhere(self, values, step, strength, outside):
        passes = Passes.of(field(*values), step, strength, outside)
        assert list(passes.strengths) == sorted(set(passes.strengths)) and len(passes.strengths) <= 3
        predictions = [torch.full((1, 2, 1, 1, len(values)), s, dtype=torch.float64) for s in passes.strengths]
        wanted = torch.tensor([lerp(outside, strength, value * step) for value in values], dtype=torch.float64)
        assert torch.allclose(passes.mix(predictions)[0, 1, 0, 0], wanted, atol=1e-6)

    def test_mixture_is_the_lerp_of_neighbouring_passes_and_exact_at_each(self):
        generator = torch.Generator().manual_seed(1)
        predictions = [torch.randn(1, 2, 1, 1, 5, generator=generator) for _ in range(3)]
        passes = Passes.of(field(0, 0.25, 0.5, 0.75, 1), 1, 3, -3)
        low, zero, high = predictions
        mixed = passes.mix(predictions)
        for place, expected in ((0, low), (2, zero), (4, high)):
            assert torch.equal(mixed[..., place], expected[..., place])
        half = torch.tensor(0.5)
        assert torch.equal(mixed[..., 1], torch.lerp(low, zero, half)[..., 1])
        assert torch.equal(mixed[..., 3], torch.lerp(zero, high, half)[..., 3])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_keeps_the_dtype_and_takes_pictures(self, dtype):
        passes = Passes.of(field(0, 1), 1, 3, 0)
        low, high = torch.zeros(2, 3, 1, 2, dtype=dtype), torch.ones(2, 3, 1, 2, dtype=dtype)
        mixed = passes.mix([low, high])
        assert mixed.dtype == dtype and torch.equal(mixed[0, 0], torch.tensor([[0, 1]], dtype=dtype))

    @pytest.mark.parametrize(("strength", "outside"), [(3, 0), (-3, 0), (3, -3), (2, 1), (3, -0.001), (0.001, -3)])
    def test_no_jump_where_the_map_becomes_uniform_or_the_sign_changes(self, strength, outside):
        """A model that bends in the strength, and weights that close up: neighbouring maps give neighbouring mixtures."""
        spread = [10.0**-n for n in range(1, 13)] + [0.0]
        for centre in (0.0, 0.3, 0.5, 1.0):
            results = []
            for width in spread:
                values = field(centre, min(1.0, centre + width), max(0.0, centre - width))
                passes = Passes.of(values, 1, strength, outside)
                bent = [torch.full((1, 1, 1, 1, 3), s**3 / 27 + s**2, dtype=torch.float64) for s in passes.strengths]
                results.append(passes.mix(bent)[0, 0, 0, 0, 0])
            for (width, one), (_, other) in itertools.pairwise(zip(spread, results, strict=True)):
                assert abs(one - other) <= 80 * width + 1e-6


class TestSchedule:
    @pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
    @pytest.mark.parametrize("percent", [0.0, 0.1, 12.5, 20.0, 50.0, 99.9])
    def test_both_ways_undo_the_models_own(self, shift, percent):
        def to_sigma(share):
            if share <= 0:
                return 999999999.9  # as ComfyUI has it
            t = 1 - share
            return shift * t / (1 + (shift - 1) * t)

        sigma = torch.tensor(to_sigma(percent / 100) if percent else 1.0).item()  # float32, as a schedule is
        assert percent_of(sigma, to_sigma) == pytest.approx(percent, abs=1e-3)
        assert flow_percent(sigma, shift) == pytest.approx(percent, abs=1e-3)

    def test_the_last_noise_level_is_100_per_cent(self):
        assert flow_percent(0.0, 5.0) == 100
        assert percent_of(0.0, lambda share: 1 - share) == 100

    def test_the_steps_of_a_sampler_out_of_a_schedule(self):
        sigmas = [1.0, 0.9, 0.7, 0.4, 0.0]
        assert sampled(sigmas, 0, -1) == sigmas[:4]
        assert sampled(sigmas, 0, 2) == [1.0, 0.9] and sampled(sigmas, 2, -1) == [0.7, 0.4]
        assert sampled(sigmas, 2, 100) == [0.7, 0.4]
        for start, end in ((4, -1), (2, 2), (3, 1), (0, 0)):
            with pytest.raises(InputError, match="4 steps"):
                sampled(sigmas, start, end)

    @pytest.mark.parametrize("shift", [1.0, 5.0])
    def test_the_strengths_of_two_samplers_are_those_of_one(self, shift):
        """Each entry belongs to its noise level, wherever the schedule is cut, and however many steps it has."""
        times = [1 - i / 8 for i in range(9)]
        sigmas = [shift * t / (1 + (shift - 1) * t) for t in times]
        steered = SliderMap(Curve.parse("0:0, 50:1, 75:1, 75:0", "steps"), Curve.parse("1", "frames"))
        whole = step_strengths(sampled(sigmas, 0, -1), shift, steered, 3.0, -1.0)
        assert whole == pytest.approx([-1, 0, 1, 2, 3, 3, -1, -1])
        halves = [step_strengths(sampled(sigmas, *part), shift, steered, 3.0, -1.0) for part in ((0, 3), (3, -1))]
        assert halves[0] + halves[1] == whole
        assert step_strengths(sigmas[:-1:2], shift, steered, 3.0, -1.0) == whole[::2]
