"""The words that a LoRA listens to, as its file's metadata tells them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

MOST = 8
LONGEST = 80  # characters of one: a whole caption is no trigger word


def trained_words(metadata: Mapping[str, str]) -> list[str]:
    """Trigger words: those that somebody wrote into the file, or else the most frequent captions of the training.

    metadata    of a safetensors file: modelspec.trigger_phrase, or kohya's ss_tag_frequency
    """
    written = metadata.get("modelspec.trigger_phrase", "")
    words = [word.strip() for word in written.split(",")] if written.strip() else _frequent(metadata)
    return [word for word in dict.fromkeys(words) if word and len(word) <= LONGEST][:MOST]


def _frequent(metadata: Mapping[str, str]) -> list[str]:
    """The tags of all data sets, the most frequent first; nothing where the entry is damaged."""
    try:
        sets = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in sets.values() if isinstance(sets, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 1 << 62:
                counts[tag.strip()] += count
    return [tag for tag, _ in counts.most_common()]
