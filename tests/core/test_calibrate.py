"""The unit of a slider: by norm, by measured change, by safe range."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import difflora
from difflora import FixedRank
from difflora.cli import main
from difflora.errors import PairError
from difflora.lora.lora import UNIT_KEY
from difflora.rank.calibrate import (
    CalibratedLora,
    calibrate,
    calibrate_norm,
    factor_for_change,
    factor_for_prediction,
    factor_for_range,
    mean_norm,
    prediction_change,
    way_to,
)
from difflora.saving.recipes import SavedRecipe, find_in, from_recipe, told
from difflora.storage.reader import read_header
from tests.lora_files import write, write_pair


@pytest.fixture
def slider(tmp_path):
    a, b = (difflora.load(path) for path in write_pair(tmp_path))
    return difflora.rerank(difflora.subtract(a, b), FixedRank(3))


def dense_mean_norm(lora):
    return float(
        np.mean([np.linalg.norm(lora[name].dense(torch.float64).numpy().reshape(-1)) for name in lora.matrices])
    )


def test_the_mean_norm_is_that_of_the_dense_modules(slider):
    assert mean_norm(slider) == pytest.approx(dense_mean_norm(slider), rel=1e-6)


def test_the_norm_of_a_module_stored_in_full_counts(tmp_path):
    whole = {"diffusion_model.blocks.0.ffn.0.diff": torch.randn(600, 600, generator=torch.Generator().manual_seed(1))}
    assert mean_norm(difflora.load(write(tmp_path / "w.safetensors", {}, whole))) == pytest.approx(
        float(whole["diffusion_model.blocks.0.ffn.0.diff"].norm()), rel=1e-5
    )


@pytest.mark.parametrize("norm", [0.01, 1.0, 25.0])
def test_after_calibration_the_mean_norm_is_the_unit(slider, norm):
    made = calibrate_norm(slider, norm)
    assert dense_mean_norm(made) == pytest.approx(norm, rel=1e-6)
    assert made.unit == f"a mean norm of {norm:g} a module"


def test_the_unit_is_saved_read_and_rebuilt(slider, tmp_path):
    path = difflora.save(calibrate_norm(slider, 0.5), tmp_path / "unit.safetensors")
    assert read_header(path).metadata[UNIT_KEY] == "a mean norm of 0.5 a module"
    loaded = difflora.load(path)
    assert loaded.unit == "a mean norm of 0.5 a module"
    again = from_recipe(SavedRecipe.of_file(path).of, find_in(tmp_path))
    assert isinstance(again, CalibratedLora) and again.unit == loaded.unit
    for name in loaded:
        assert torch.equal(again[name].up, loaded[name].up) and torch.equal(again[name].down, loaded[name].down)
    assert told(SavedRecipe.of_file(path).of).endswith("so that 1 is a mean norm of 0.5 a module")


def test_the_unit_lasts_through_a_rerank_and_ends_where_the_strength_changes(slider, tmp_path):
    loaded = difflora.load(difflora.save(calibrate_norm(slider, 0.5), tmp_path / "unit.safetensors"))
    assert difflora.rerank(loaded, FixedRank(2)).unit == loaded.unit
    assert loaded.scaled(2.0).unit is None and loaded.select("attn").unit is None
    assert difflora.combine([(1.0, loaded), (1.0, slider)]).unit is None
    scaled = difflora.save(loaded.scaled(2.0), tmp_path / "scaled.safetensors")
    assert UNIT_KEY not in read_header(scaled).metadata


@given(st.floats(0.05, 5), st.floats(0.2, 3))
def test_a_straight_curve_gives_the_strength_at_which_it_changes_that_much(slope, change):
    strengths = [-3, -2, -1, 0, 1, 2, 3]
    values = [7 + slope * one for one in strengths]
    if change > 3 * slope:
        with pytest.raises(PairError, match="at most"):
            factor_for_change(strengths, values, change)
    else:
        assert factor_for_change(strengths, values, change) == pytest.approx(change / slope)


def test_a_bent_or_falling_curve_and_uneven_strengths():
    strengths = [-3, -1, 0, 0.5, 2]
    values = [10.0, 8, 5, 4.5, 1]
    found = factor_for_change(strengths, values, 2.0)
    ends = np.interp([found, -found], strengths, values)
    assert abs(ends[0] - ends[1]) / 2 == pytest.approx(2.0)
    assert found < 2  # no further than the shorter side


@pytest.mark.parametrize("strengths", [[0, 1, 2], [-2, -1, 0], [0], []])
def test_one_side_alone_has_no_unit(strengths):
    with pytest.raises(PairError, match="one side of 0"):
        factor_for_change(strengths, [1.0] * len(strengths), 1.0)


def test_the_safe_range_ends_at_three():
    assert factor_for_range(-1.5, 3.0) == pytest.approx(0.5)
    assert factor_for_range(-6, 6) == pytest.approx(2)
    with pytest.raises(PairError, match="below and above 0"):
        factor_for_range(0.0, 3.0)


def linear_model(lora, seed=5):
    """Predictions of a linear layer with a LoRA at a strength, and the change of them that linear algebra gives."""
    name = lora.matrices[0]
    change = lora[name].dense(torch.float64)
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(change.shape, generator=random, dtype=torch.float64)
    x = torch.randn(7, change.shape[1], generator=random, dtype=torch.float64)
    exact = np.linalg.norm(x.numpy() @ change.numpy().T) / np.linalg.norm(x.numpy() @ weight.numpy().T)
    return (lambda strength: (x @ (weight + strength * change).T).float()), exact


def test_the_change_of_a_linear_models_prediction_is_the_one_that_linear_algebra_gives(slider):
    predict, exact = linear_model(slider)
    assert prediction_change(predict(0.0), predict(1.0), predict(-1.0)) == pytest.approx(exact, rel=1e-5)
    assert prediction_change(predict(0.0), predict(-3.0), predict(3.0)) == pytest.approx(3 * exact, rel=1e-5)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.7])
def test_a_linear_model_is_measured_twice_and_the_calibrated_slider_changes_it_by_the_unit(slider, share):
    predict, exact = linear_model(slider)
    asked = []

    def measured(strength):
        asked.append(strength)
        return prediction_change(predict(0.0), predict(strength), predict(-strength))

    factor = factor_for_prediction(measured, share)
    assert factor == pytest.approx(share / exact, rel=1e-4)
    assert asked == [1.0, factor]
    predict, now = linear_model(calibrate(slider, factor, "unit"))
    assert now == pytest.approx(share, rel=1e-4)


@given(st.floats(0.01, 2), st.floats(0.01, 0.6), st.floats(0.4, 1.3))
def test_where_the_change_levels_off_the_factor_is_still_found(size, share, power):
    def measured(strength):
        return math.tanh(size * strength**power)

    assert measured(factor_for_prediction(measured, share)) == pytest.approx(share, rel=0.0101)


def test_a_slider_too_strong_to_be_computed_is_tried_weaker():
    factor = factor_for_prediction(lambda strength: math.nan if strength > 0.1 else 2 * strength, 0.05)
    assert factor == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (lambda strength: 0.0, "does not change what the model predicts"),
        (lambda strength: 0.02, "by up to 2.000%, but nowhere by 5.000%"),
        (lambda strength: math.nan, "nowhere by 5.000%"),
    ],
)
def test_a_prediction_that_cannot_be_brought_to_the_unit(measured, message):
    with pytest.raises(PairError, match=message):
        factor_for_prediction(measured, 0.05)


def test_the_way_to_a_noise_level_begins_with_noise_alone():
    assert way_to(0.75) == [1, 0.9375, 0.875, 0.8125, 0.75]
    assert way_to(1.0) == [1]


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_units_that_are_none(slider, number):
    with pytest.raises(PairError, match="above zero"):
        calibrate_norm(slider, number)
    with pytest.raises(PairError, match="above zero"):
        factor_for_change([-1, 0, 1], [0, 1, 2], number)
    with pytest.raises(PairError, match="above zero"):
        factor_for_prediction(abs, number)


@pytest.mark.parametrize("factor", [0.0, 1e-9, 1e9, math.nan])
def test_factors_that_are_a_mistake(slider, factor):
    with pytest.raises(PairError, match="Choose another unit"):
        calibrate(slider, factor, "nonsense")


def test_the_command_line_writes_and_shows_the_unit(slider, tmp_path, capsys):
    path = difflora.save(slider, tmp_path / "slider.safetensors")
    out = tmp_path / "unit.safetensors"
    assert main(["calibrate", str(path), "--norm", "0.5", "-o", str(out)]) == 0
    assert "strength 1 is" in capsys.readouterr().out
    assert dense_mean_norm(difflora.load(out)) == pytest.approx(0.5, rel=1e-6)
    assert main(["inspect", str(out)]) == 0
    assert "a mean norm of 0.5 a module" in capsys.readouterr().out
    assert main(["calibrate", str(path), "--norm", "0", "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "above zero" in capsys.readouterr().err
