"""What the heat map of Analyze Pair shows, against numpy. Runs without ComfyUI."""

import numpy as np
import pytest
import torch

import difflora
from tests.lora_files import write_pair
from tests.pack_modules import pack_module

plots = pack_module("nodes.common.plots")
RANK = 2


def energy(values):
    return (values[:RANK] ** 2).sum() / (values**2).sum()


# Of the changes a and b of a module, and the singular values of a - b.
TRUTH = {
    "difference": lambda a, b, values: np.linalg.norm(a - b),
    "size of A": lambda a, b, values: np.linalg.norm(a),
    "size of B": lambda a, b, values: np.linalg.norm(b),
    "cosine": lambda a, b, values: (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b),
    "cancelled": lambda a, b, values: 2 * (a * b).sum() / ((a**2).sum() + (b**2).sum()),
    "stable rank": lambda a, b, values: (values**2).sum() / values[0] ** 2,
    "energy": lambda a, b, values: energy(values),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return [difflora.load(path) for path in write_pair(tmp_path_factory.mktemp("pair"))]


@pytest.mark.parametrize("quantity", plots.QUANTITIES)
def test_the_heat_map_shows_what_the_list_says(pair, quantity, monkeypatch):
    a, b = ({name: delta.dense(torch.float64).numpy() for name, delta in lora.items()} for lora in pair)
    drawn = {}
    draw = plots.module_map
    monkeypatch.setattr(plots, "module_map", lambda values, *rest: drawn.update(values) or draw(values, *rest))
    picture = plots.heatmap(difflora.analyze(*pair), quantity, RANK)
    wanted = {name: TRUTH[quantity](a[name], b[name], np.linalg.svd(a[name] - b[name])[1]) for name in a}
    assert drawn == pytest.approx(wanted, rel=1e-5)
    assert picture.shape[-1] == 3 and 0 <= float(picture.min()) < float(picture.max()) <= 1
