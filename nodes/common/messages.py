"""What nodes tell the page: reports, numbers for the heat map, spectra. `js/lib/messages.js` reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...difflora import Analysis, Lora
from ...difflora.rank.rerank import RerankedLora
from ...difflora.sentence import Sentence
from .routes import kept

VALUES_SENT = 200_000  # singular values in all; beyond that, the page gets only the largest of each module


def report(title: str, lines: Iterable[str] = (), warnings: Iterable[str] = ()) -> dict[str, Any]:
    """A short text on the node. Everything in it is shown as plain text, sentences in the user's language."""
    entries = [{**_told(text), "level": "info"} for text in lines]
    return {
        "report": {"title": _told(title), "lines": entries + [{**_told(text), "level": "warning"} for text in warnings]}
    }


def _told(text: object) -> dict[str, Any]:
    """The English text, and its template and values, from which the page translates it."""
    if not isinstance(text, Sentence):
        return {"text": str(text)}
    return {"text": str(text), "template": text.template, "values": [_told(value) for value in text.values]}


def lora_modules(lora: Lora) -> dict[str, Any]:
    """The modules of a LoRA, for the grid; a later node sends their sizes."""
    return {"modules": {name: {} for name in lora}}


def analysis_modules(analysis: Analysis) -> dict[str, Any]:
    return {
        "modules": {
            name: {"norm_a": n.norm_a, "norm_b": n.norm_b, "norm": n.norm, "cosine": n.cosine}
            for name, n in analysis.modules.items()
        }
    }


def reranked_modules(lora: RerankedLora) -> dict[str, Any]:
    """Norm, retained energy and spectrum of every module, so that the page can move the cut without a run."""
    modules, values, energy, shape = {}, {}, {}, {}
    shown = max(64, VALUES_SENT // max(1, len(lora.matrices)))
    for name in lora.matrices:
        spectrum = lora.spectrum(name)
        energy[name] = lora.total_energy(name)
        shape[name] = [lora.specs[name].out_features, lora.specs[name].in_features]
        values[name] = [float(f"{value:.12g}") for value in spectrum[:shown].tolist()]
        modules[name] = {"norm": energy[name] ** 0.5, "energy": lora.module_energy(name)}
    return {"modules": modules, "spectrum": {"values": values, "energy": energy, "shape": shape}}


def ui(*parts: dict[str, Any]) -> dict[str, Any]:
    """The `ui` of a node's output. It is kept for pages that were not there."""
    return {"difflora": [kept(merged(*parts))]}


def with_pictures(preview: dict[str, Any], *parts: dict[str, Any]) -> dict[str, Any]:
    """The same with pictures that the node shows: for a node that is no output, ComfyUI does not send those again either.

    preview     of `PreviewImage.as_dict()`
    """
    return preview | ui(*parts, {"pictures": preview["images"]})


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for part in parts:
        message |= part
    return message
