"""Which translated help pages are missing or older than the English page that they were made from.

python -m scripts.help_pages                    names them; exit code 1 if there are any
python -m scripts.help_pages --diff             and shows what has changed in the English pages since
python -m scripts.help_pages --mark ID [ID …]   writes the hash of the English page into its translations, once they follow it

ComfyUI's page asks for `js/docs/<NodeId>/<locale>.md` and takes `js/docs/<NodeId>.md` where there is none. A translation
ends with the hash of the English page in an HTML comment, which the page does not show.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from .locale_texts import LOCALES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "js" / "docs"
LANGUAGES = tuple(sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en"))
MARK = re.compile(r"\n<!-- made from (\w+) -->\n$")


def fingerprint(english: str) -> str:
    """A short hash of an English page, the same for both kinds of line ends."""
    return hashlib.sha256(english.replace("\r\n", "\n").encode()).hexdigest()[:12]


def made_from(translated: str) -> str | None:
    """The hash that a translation carries."""
    found = MARK.search(translated.replace("\r\n", "\n"))
    return found[1] if found else None


def marked(translated: str, english: str) -> str:
    """A translation that carries the hash of `english`, in place of any other."""
    return MARK.sub("", translated).rstrip() + f"\n\n<!-- made from {fingerprint(english)} -->\n"


def problems(docs: Path = DOCS) -> dict[str, str]:
    """``DiffLoraSave/ja`` -> missing, stale, or without an English page."""
    english = {page.stem: page.read_text("utf-8") for page in docs.glob("*.md")}
    found = {}
    for node_id, text in sorted(english.items()):
        for language in LANGUAGES:
            page = docs / node_id / f"{language}.md"
            if not page.is_file():
                found[f"{node_id}/{language}"] = "missing"
            elif made_from(page.read_text("utf-8")) != fingerprint(text):
                found[f"{node_id}/{language}"] = "stale"
    for page in sorted(docs.glob("*/*.md")):
        if page.parent.name not in english or page.stem not in LANGUAGES:
            found[f"{page.parent.name}/{page.stem}"] = "no English page, or no language of the pack"
    return found


def changes(node_id: str, since: str) -> str:
    """What has changed in an English page since the version with this hash, as Git shows it; empty if Git has no such version."""
    page = f"js/docs/{node_id}.md"
    for commit in git("log", "--format=%H", "--", page).split():
        if fingerprint(git("show", f"{commit}:{page}")) == since:
            return git("diff", "--word-diff", "--unified=0", commit, "--", page)
    return ""


def git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, encoding="utf-8", check=False).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--diff", action="store_true", help="show what has changed in the English pages")
    parser.add_argument(
        "--mark", nargs="+", default=(), metavar="ID", help="these translations follow their English page"
    )
    options = parser.parse_args()
    for node_id in options.mark:
        english = (DOCS / f"{node_id}.md").read_text("utf-8")
        for page in sorted((DOCS / node_id).glob("*.md")):
            page.write_text(marked(page.read_text("utf-8"), english), "utf-8", newline="\n")
    found = problems()
    for name, problem in found.items():
        print(f"{name}: {problem}")
        node_id, language = name.split("/")
        if options.diff and problem == "stale":
            print(changes(node_id, made_from((DOCS / node_id / f"{language}.md").read_text("utf-8")) or ""))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
