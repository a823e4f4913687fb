"""The rank rules, by the worked cases that the page's tests read too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from difflora.rank.rules import RULES, RankRule, Spectrum, ranks_of, rule_from_recipe, rule_of

DATA = json.loads((Path(__file__).parents[1] / "data" / "rank_rules.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = DATA["cases"]


def spectrum_of(module: dict[str, Any], limit: int | None) -> Spectrum:
    listed = module["values"] + [module.get("repeat", 0.0)] * module.get("times", 0)
    values = torch.tensor(listed, dtype=torch.float64)
    energy = module.get("energy", float(values.square().sum()))
    out, into = module.get("shape", (100, 100))
    return Spectrum(values, energy, (out, into), min(len(values), limit or len(values)))


@pytest.mark.parametrize("case", CASES, ids=[f"{case['rule']}: {case['why']}" for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    rule = rule_of(case["rule"], case.get("settings", {}))
    limit = None if case["rule"] == "rank" else case.get("max_rank")
    modules = case.get("modules", {"it": case})
    spectra = {name: spectrum_of(module, limit) for name, module in modules.items()}
    ranks = ranks_of(rule, spectra, {name: spectrum.most for name, spectrum in spectra.items()})
    assert ranks == case.get("ranks", {"it": case.get("rank")})


def test_every_rule_has_cases_and_words() -> None:
    assert {case["rule"] for case in CASES} == set(RULES)
    for rule in RULES.values():
        assert rule.says and bool(rule.example) == (rule.setting is not None)


@pytest.mark.parametrize("word", RULES)
def test_a_rule_comes_back_from_its_recipe(word: str) -> None:
    rule = rule_of(word, {"rank": 3, "energy": 0.75, "ratio": 5.0})
    assert rule_from_recipe(json.loads(json.dumps(rule.recipe))) == rule


def test_a_rule_may_weigh_modules_against_each_other() -> None:
    """What a rule is told is enough to spend one budget where a number buys most."""

    @dataclasses.dataclass(frozen=True)
    class Cheapest(RankRule):
        numbers: int
        kind, word, says = "cheapest", "cheapest", "as much energy as this many numbers buy"

        def ranks(self, spectra: Any) -> dict[str, int]:
            offers = sorted(
                (-(float(value) ** 2) / sum(one.shape), sum(one.shape), name)
                for name, one in spectra.items()
                for value in one.values[: one.most]
            )
            ranks, left = dict.fromkeys(spectra, 0), self.numbers
            for _, cost, name in offers:
                if cost <= left:
                    ranks[name], left = ranks[name] + 1, left - cost
            return ranks

    wide = spectrum_of({"values": [4.0, 3.0, 1.0], "shape": (90, 10)}, None)
    small = spectrum_of({"values": [2.0, 1.9, 0.1], "shape": (5, 5)}, None)
    ranks = ranks_of(Cheapest(220), {"wide": wide, "small": small}, {"wide": 3, "small": 3})
    assert ranks == {"wide": 2, "small": 2}
