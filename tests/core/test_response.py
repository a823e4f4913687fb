"""The measures on pictures whose answers are known, and what is concluded from them."""

import numpy as np
import pytest
import torch

from difflora.clips import response
from difflora.clips.response import Response, Sweep, measure_frames, measure_sweeps
from difflora.clips.store import About, ClipStore
from difflora.errors import UnsupportedError

kornia = pytest.importorskip("kornia")
pytest.importorskip("scipy")


def texture(height=120, width=160, seed=0, smooth=5):
    random = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 1, height + 2 * smooth, width + 2 * smooth, generator=random)
    soft = torch.nn.functional.avg_pool2d(noise, 2 * smooth + 1, 1)
    return (soft - soft.min()) / (soft.max() - soft.min())


def plain(colour, frames=1, height=32, width=32):
    return torch.tensor(colour)[None, :, None, None].expand(frames, 3, height, width)


class TestDetail:
    @pytest.mark.parametrize("bars", [0, 1, 3, 8])
    def test_each_edge_of_black_and_white_bars_is_two_pixels_wide(self, bars):
        grey = torch.zeros(1, 1, 20, 200)
        for bar in range(bars):
            grey[..., 10 + 20 * bar : 20 + 20 * bar] = 1  # two edges each
        assert response.edge_density(grey) == pytest.approx(100 * bars * 2 * 2 / 200)

    @pytest.mark.parametrize(("step", "seen"), [(0.09, 0), (0.1, 2), (0.5, 2)])
    def test_a_step_of_a_tenth_is_an_edge(self, step, seen):
        grey = torch.full((1, 1, 20, 50), 0.2)
        grey[..., 25:] += step
        assert response.edge_density(grey) == pytest.approx(100 * seen / 50)

    def test_entropy_of_nothing_of_a_checkerboard_and_of_noise(self):
        assert response.local_entropy(torch.full((1, 1, 64, 64), 0.3)) == 0
        board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
        # 41 of 81 pixels of a window are of one colour.
        expected = -sum(p * np.log2(p) for p in (40 / 81, 41 / 81))
        assert response.local_entropy(board.float()[None, None]) == pytest.approx(expected, abs=1e-6)
        noise = torch.rand(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
        # 81 samples see a little less than all of 4 bits: (16 - 1) / (2 · 81 · ln 2), Miller 1955.
        assert response.local_entropy(noise) == pytest.approx(4 - 15 / (2 * 81 * np.log(2)), abs=0.02)

    def test_sharpness_of_white_noise_is_twenty_variances_and_blur_takes_it_away(self):
        noise = 0.5 + 0.05 * torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))
        assert response.sharpness(noise) == pytest.approx(20 * (0.05 * 255) ** 2, rel=0.03)
        blurred = torch.nn.functional.avg_pool2d(noise, 3, 1)
        assert response.sharpness(blurred) < response.sharpness(noise) / 10


class TestMotion:
    @pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, 0.0), (0.0, -2.0), (3.0, 4.0), (-8.0, 6.0)])
    def test_a_moved_picture_moves_by_that(self, shift):
        whole = texture(200, 240)
        x, y = (int(part) for part in shift)
        before = whole[..., 20:180, 20:220]
        after = whole[..., 20 - y : 180 - y, 20 - x : 220 - x]
        assert response.motion(before, after) == pytest.approx(np.hypot(*shift), rel=0.05, abs=0.01)
        flow, _ = response.optical_flow(before, after)
        middle = flow[0, :, 40:-40, 40:-40].mean((1, 2))
        assert torch.allclose(middle, torch.tensor(shift), atol=0.05 + 0.02 * abs(np.hypot(*shift)))

    def test_large_pictures_are_measured_in_their_own_pixels(self):
        whole = texture(480, 680, smooth=9)
        assert response.motion(whole[..., :640], whole[..., 12:652]) == pytest.approx(12, rel=0.06)

    def test_a_grey_picture_has_no_motion(self):
        assert response.motion(torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.6)) == 0


def srgb(lightness, a, b):
    """CIELAB (D65) to sRGB, from the definitions of CIE 15 and IEC 61966-2-1."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.950489, 1, 1.08884]
    linear = (
        np.linalg.inv(
            [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
        )
        @ xyz
    )
    return tuple(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).tolist())


class TestColour:
    @pytest.mark.parametrize(
        ("colour", "lab"),  # sRGB to CIELAB under D65, from the definition (Lindbloom)
        [
            ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
            ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
            ((0.5, 0.5, 0.5), (53.389, 0.0, 0.0)),
            ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
            ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
            ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ],
    )
    def test_known_colours(self, colour, lab):
        values = measure_frames(plain(colour)).values
        assert (values["brightness"], values["a"], values["b"]) == pytest.approx(lab, abs=0.05)
        assert values["saturation"] == pytest.approx(np.hypot(lab[1], lab[2]), abs=0.05)

    def test_a_known_green_cast_is_found_on_a_alone_with_its_size(self):
        base, green = measure_frames(plain(srgb(55, 0, 0))), measure_frames(plain(srgb(55, -10, 0)))
        moved = response.compared(green, base)
        assert green.values["a"] - base.values["a"] == pytest.approx(-10, abs=0.1)
        assert green.values["b"] - base.values["b"] == pytest.approx(0, abs=0.1)
        assert moved["colour_drift"] == pytest.approx(10, abs=0.1)
        assert moved["distance"] == pytest.approx(10, abs=0.1)

    def test_opposite_changes_have_a_distance_but_no_drift(self):
        half = plain((0.5, 0.5, 0.5), width=64).clone()
        base = measure_frames(half)
        half[..., :32] += 0.1
        half[..., 32:] -= 0.1
        moved = response.compared(measure_frames(half), base)
        assert moved["colour_drift"] < 0.01 and moved["distance"] > 5


class TestWhatStays:
    """Colour drift is judged on what stays in the picture."""

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
    def test_red_things_on_a_grey_ground_are_no_drift(self, share):
        ground = plain(srgb(50, 2, -3), height=64, width=200).clone()
        base = measure_frames(ground)
        red = torch.tensor((0.8, 0.1, 0.1))[None, :, None, None]
        ground[..., : int(200 * share)] = red
        added = measure_frames(ground)
        assert added.values["a"] - base.values["a"] > 5, "the mean of all pixels does move"
        assert response.compared(added, base)["colour_drift"] < 0.01

    def test_a_tint_counts_in_full_whatever_was_added(self):
        base = measure_frames(plain(srgb(50, 0, 0), height=64, width=200))
        tinted = plain(srgb(50, 3, 4), height=64, width=200).clone()
        tinted[..., :60] = 0.9
        moved = response.compared(measure_frames(tinted), base)
        assert (moved["drift_a"], moved["drift_b"], moved["colour_drift"]) == pytest.approx((3, 4, 5), abs=0.1)


def curve(strengths, values, baseline=0.0, **others):
    named = {"edges": values} | others
    return Response(np.array(strengths, float), {name: np.array([row], float) for name, row in named.items()}, baseline)


class TestConclusions:
    strengths = (-3, -2, -1, 0, 1, 2, 3)

    def test_monotonicity(self):
        assert curve(self.strengths, [1, 2, 3, 5, 8, 9, 20]).monotonicity("edges") == pytest.approx(1)
        assert curve(self.strengths, [9, 8, 7, 6, 5, 4, 1]).monotonicity("edges") == pytest.approx(-1)
        assert curve(self.strengths, [4] * 7).monotonicity("edges") == 0
        # One swapped pair of seven: 1 - 6 · 2 / (7 · 48).
        assert curve(self.strengths, [1, 3, 2, 4, 5, 6, 7]).monotonicity("edges") == pytest.approx(1 - 12 / 336)

    def test_symmetry(self):
        assert curve(self.strengths, [-6, -4, -2, 0, 2, 4, 6]).symmetry("edges") == pytest.approx(1)
        assert curve(self.strengths, [6, 4, 2, 0, 2, 4, 6]).symmetry("edges") == pytest.approx(0)
        assert curve(self.strengths, [0, 0, 0, 0, 2, 4, 6]).symmetry("edges") == pytest.approx(0)
        # Half as much below: 1 - (1 + 2 + 3) / (3 + 6 + 9)
        assert curve(self.strengths, [-3, -2, -1, 0, 2, 4, 6]).symmetry("edges") == pytest.approx(1 - 6 / 18)
        # Uneven sides are compared as far as both reach, on a straight line between strengths.
        assert curve([-4, 0, 1, 2], [-4, 0, 1, 2]).symmetry("edges") == pytest.approx(1)
        assert curve([0, 1, 2], [0, 1, 2]).symmetry("edges") == 0

    def test_the_strength_at_a_limit_lies_on_the_straight_line_between_two(self):
        drift = curve(self.strengths, [0] * 7, colour_drift=[9, 4, 1, 0, 1, 3, 7])
        assert drift.reach("colour_drift", 5) == pytest.approx((-2.2, 2.5))
        assert drift.recommended({"colour_drift": 5}) == (-2.2, 2.5)
        assert drift.recommended({"colour_drift": 4.9}) == (-2.1, 2.4)  # to the inner tenth
        assert drift.recommended({"colour_drift": 100}) == (-3, 3)
        assert drift.recommended({}) == (-3, 3)

    def test_the_strictest_measure_counts_on_each_side(self):
        both = curve(
            self.strengths, [0] * 7, colour_drift=[9, 4, 1, 0, 1, 3, 7], brightness=[50, 50, 50, 50, 50, 56, 60]
        )
        assert both.recommended({"colour_drift": 5, "brightness": 3}) == (-2.2, 1.5)

    def test_a_range_as_save_lora_takes_it(self):
        assert response.range_text(-2.5, 3.0) == "-2.5 to 3"
        assert response.range_text(0.0, 0.0) == ""

    def test_csv_has_a_line_for_each_strength(self):
        lines = curve([-1, 0, 1.5], [1, 2, 3]).csv().splitlines()
        assert lines == ["strength,edges (% of pixels)", "-1,1", "0,2", "1.5,3"]


class TestSweeps:
    @pytest.fixture
    def store(self, tmp_path):
        pytest.importorskip("av")
        return ClipStore(tmp_path)

    def clip(self, store, key, strength, seed=0, frames=7):
        """A drifting texture that a strength makes greener and richer in contrast."""
        whole = texture(64, 120, seed)[0, 0].numpy()
        made = []
        for number in range(frames):
            grey = 0.5 + (whole[:, number : number + 96] - 0.5) * (0.5 + 0.1 * strength)
            rgb = np.stack([grey, grey + 0.02 * strength, grey], -1)
            made.append((rgb.clip(0, 1) * 255).round().astype(np.uint8))
        return store.add(key, made, About(frames, 96, 64), 16, 48)

    def sweep(self, store, strengths, seed=0):
        clips = [self.clip(store, f"{seed}x{index}", strength, seed) for index, strength in enumerate(strengths)]
        return Sweep(tuple(strengths), tuple(clips), 16, 0.0)

    def test_contrast_and_a_green_tint_are_found_in_order_in_encoded_clips(self, store):
        found = measure_sweeps([self.sweep(store, [2.0, -2.0, 0.0, 1.0, -1.0])], moments=3)
        assert list(found.strengths) == [-2, -1, 0, 1, 2]
        assert found.monotonicity("sharpness") == pytest.approx(1)
        assert found.monotonicity("a") == pytest.approx(-1)  # greener
        assert found.symmetry("a") > 0.8
        assert found.mean("colour_drift")[2] == found.mean("distance")[2] == 0
        assert found.mean("motion") == pytest.approx([1] * 5, abs=0.1)
        assert (np.diff(np.abs(found.change("a"))[2:]) > 1).all()

    def test_single_pictures_have_no_motion(self, store):
        clips = [self.clip(store, f"still{index}", strength, frames=1) for index, strength in enumerate((-1, 0, 1))]
        found = measure_sweeps([Sweep((-1.0, 0.0, 1.0), tuple(clips), 16, 0.0)])
        assert "motion" not in found.values and "motion" not in found.csv()
        assert {"edges", "colour_drift", "distance"} <= found.values.keys()

    def test_several_clips_are_averaged_and_what_one_lacks_is_left_out(self, store):
        one, other = self.sweep(store, [-1.0, 0.0, 1.0, 2.0]), self.sweep(store, [-1.0, 0.0, 1.0], seed=1)
        both = measure_sweeps([one, other], moments=2)
        assert list(both.strengths) == [-1, 0, 1] and both.left_out == (2.0,)
        alone = [measure_sweeps([sweep], moments=2).mean("edges")[:3] for sweep in (one, other)]
        assert both.mean("edges") == pytest.approx((alone[0] + alone[1]) / 2)

    def test_without_a_baseline_there_is_an_error(self, store):
        with pytest.raises(UnsupportedError, match="baseline 0 is not among"):
            measure_sweeps([self.sweep(store, [1.0, 2.0])])
        with pytest.raises(UnsupportedError, match="only one strength"):
            measure_sweeps([self.sweep(store, [0.0])])

    def test_moments_are_spread_and_have_a_frame_behind_them(self):
        assert response.moments_of(81, 5) == [0, 20, 40, 59, 79]
        assert response.moments_of(1, 5) == [0]
        assert response.moments_of(3, 12) == [0, 1]
