"""Branches beside a layer: they add up, come off in any order, and torch.compile sees them. Runs without ComfyUI."""

import itertools

import pytest
import torch
from torch import nn

from tests.pack_modules import pack_module

branches = pack_module("nodes.slider.branches")
deltas = pack_module("difflora.lora.deltas")


def low_rank(seed, rows=24, columns=16, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    terms = [
        deltas.Term(
            torch.randn(rows, r, generator=random).to(dtype), torch.randn(r, columns, generator=random).to(dtype), s
        )
        for r, s in ((3, 0.5), (2, -1.5))
    ]
    return deltas.LowRank(tuple(terms), (rows, columns))


def put(layer, delta, strength):
    return branches.attach(layer, *branches.factors(delta, strength, "cpu", layer.weight.dtype))


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 5, 16)])
def test_branches_of_two_sliders_add_up(shape):
    torch.manual_seed(7)  # float32 factors round: of a hundred layers and inputs, one would be beyond the bound
    layer, x = nn.Linear(16, 24).double(), torch.randn(shape, dtype=torch.float64)
    one, two = low_rank(1), low_rank(2)
    truth = nn.functional.linear(
        x, layer.weight + 2.5 * one.dense(torch.float64) - 0.3 * two.dense(torch.float64), layer.bias
    )
    put(layer, one, 2.5), put(layer, two, -0.3)
    assert torch.allclose(layer(x), truth, atol=1e-6)


def test_whatever_the_order_they_come_off_in_the_layer_is_as_before():
    layer, x = nn.Linear(16, 24), torch.randn(5, 16)
    before = layer(x)
    for order in itertools.permutations(range(3)):
        detach = [put(layer, low_rank(i), 1.0 + i) for i in range(3)]
        on = set(range(3))
        for i in order:
            detach[i]()
            on.remove(i)
            truth = nn.functional.linear(x, layer.weight + sum((1.0 + j) * low_rank(j).dense() for j in on), layer.bias)
            assert torch.allclose(layer(x), truth, atol=1e-4)
            detach[i]()  # a second time does nothing
        assert torch.equal(layer(x), before) and "forward" not in vars(layer)


def test_a_forward_that_another_pack_puts_over_ours_stays_theirs():
    layer, x = nn.Linear(16, 24), torch.randn(5, 16)
    before = layer(x)
    detach = put(layer, low_rank(1), 1.0)
    below = layer.forward
    layer.forward = lambda x: below(x) + 1
    over = layer.forward
    detach()
    assert layer.forward is over and torch.allclose(layer(x), before + 1)
    layer.forward = below  # as they found it
    assert torch.equal(layer(x), before)


def test_neither_the_parameters_nor_their_names_change():
    layer = nn.Linear(16, 24)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    put(layer, low_rank(1), 1.0)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_in_bfloat16_the_change_is_rounded_and_not_the_weight():
    """A change of a thousandth of the weight drowns when it is added to a bf16 weight, and does not beside it."""
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    layer.weight = nn.Parameter(torch.randn(64, 64, generator=random).bfloat16(), requires_grad=False)
    delta, strength = low_rank(1, 64, 64), 1e-3
    change = strength * delta.dense(torch.float64)
    patched = (layer.weight.double() + change).bfloat16().double() - layer.weight.double()
    up, down = branches.factors(delta, strength, "cpu", torch.bfloat16)
    beside = up.double() @ down.double()
    drowned, kept = (float((one - change).norm() / change.norm()) for one in (patched, beside))
    assert drowned > 0.2 and kept < 0.005
    assert float(torch.tensor(2.9).bfloat16()) == pytest.approx(2.90625)  # what the strength itself would become


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_a_compiled_model_follows_every_change_and_a_new_strength_compiles_nothing():
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net, x = Net(), torch.randn(5, 16)
    counts = []
    for on in ([], [(1, 2.0)], [(1, -2.0)], [(1, 1.0), (2, 1.0)], [(2, 0.5)], [], [(1, 3.0)]):
        detach = [put(net.first, low_rank(seed), strength) for seed, strength in on]
        assert torch.allclose(torch.compile(net, backend=count)(x), net(x), atol=1e-5)
        counts.append(len(compiled))
        for off in detach:
            off()
    assert counts == [1, 2, 2, 3, 3, 3, 3]


def test_a_strength_that_changes_in_place_between_the_passes_of_a_map_compiles_nothing():
    """0 and both signs in turn, as a map with three passes does."""
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net, x = Net(), torch.randn(5, 16)
    deltas = [(net.first, low_rank(1)), (net.second, low_rank(2, 16, 24))]
    adjustable = [branches.AdjustableBranch(delta, 2.0, torch.device("cpu"), torch.float32) for _, delta in deltas]
    for (layer, _), branch in zip(deltas, adjustable, strict=True):
        branches.attach(layer, branch.up, branch.down)
    run = torch.compile(net, backend=count)
    seen = []
    for strength in (2.0, -3.0, 0.0, 3.0, -3.0, 0.5):
        for branch in adjustable:
            branch.set_strength(strength)
        other = Net()
        other.load_state_dict(net.state_dict())
        for layer, (_, delta) in zip((other.first, other.second), deltas, strict=True):
            put(layer, delta, strength)
        got = run(x)
        assert torch.equal(got, other(x))
        seen.append(got)
    assert len(compiled) == 1
    assert not torch.equal(seen[0], seen[1])
