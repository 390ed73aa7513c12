"""Pages lead where they say: files that are there, headings that are there, paths that exist."""

import re
from functools import cache
from pathlib import Path

import pytest

import decision_s4

ROOT = Path(decision_s4.__file__).parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("data/*/README.md")),
    ROOT / "benchmarks" / "LOG.md",
]
EXAMPLES = {"agents/backbones/leaky_average.py"}  # what a reader is told to write


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_named_exists(page):
    rooms = "agents|benchmarks|configs|data|docs|envs|kernels|tests"
    for path in re.findall(rf"`((?:{rooms})/[\w./*%-]+)`", prose(page)):
        assert path in EXAMPLES or list(ROOT.glob(path.rstrip("/"))), path


def test_every_page_is_listed():
    listed = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name}" in listed, page.name
