"""The pages: short enough, every link leads somewhere, every command is one."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from timm_molly.cli import COMMANDS, _parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md')]
PAGES += [page for folder in ('timm_molly', 'recipes', 'hub_cards') for page in sorted((ROOT / folder).rglob('*.md'))]
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def anchors(page):
    """What a page's heads are linked by."""
    heads = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@each_page
def test_every_link_leads_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if not re.match(r'https?:', link):
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_page
def test_every_command_takes_what_the_page_gives_it(page):
    parser = _parser({name: importlib.import_module(f'timm_molly.cli.{name}') for name in COMMANDS})
    blocks = re.findall(r'^ *```(?:bash)?\n(.*?)^ *```', page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    for line in lines:
        if line.startswith('timm-molly '):
            words = [word for word in shlex.split(line, comments=True)[1:] if word != '...']
            assert parser.parse_args(words).command == words[0], line
