"""The memory of a finished clip is given back if nobody else needs it, and only then."""

from weakref import ref

import pytest
import torch

from tests.pack_modules import pack_module

module = pack_module("nodes.sweep.let_go")
pytestmark = pytest.mark.skipif(not hasattr(torch._C, "_storage_Use_Count"), reason="this torch does not count users")


def size(tensor):
    return tensor.untyped_storage().nbytes()


def test_what_one_cached_list_holds_is_freed():
    cached = [torch.ones(3, 4, 4, 3)]
    module.let_go(ref(cached[0]))
    assert size(cached[0]) == 0


@pytest.mark.parametrize("holder", ["another list", "a dictionary", "a view", "an object"])
def test_what_somebody_else_holds_stays(holder):
    cached = [torch.ones(3, 4, 4, 3)]
    other = {
        "another list": lambda: [cached[0]],
        "a dictionary": lambda: {"kept": cached[0]},
        "a view": lambda: cached[0][:1],
        "an object": lambda: type("Node", (), {"kept": cached[0]})(),
    }[holder]()
    module.let_go(ref(cached[0]))
    assert size(cached[0]) > 0 and other is not None


def test_what_is_gone_already_does_no_harm():
    gone = torch.ones(2)
    pointer = ref(gone)
    del gone
    module.let_go(pointer)
