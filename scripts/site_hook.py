"""MkDocs' hook of mkdocs.yml: adds pages from outside docs/ and generated pages, and rewrites links.

On a code host, every link in the Markdown files is a path in the repository. On the site, a link to a page becomes that
page's address, and a link to any other file becomes plain text. A broken link is kept, so that `--strict` refuses it.
"""

import posixpath
import re
from pathlib import Path

import site_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
# Files of the repository, and their pages.
_OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "RELEASING.md": "project/releasing.md",
    "SECURITY.md": "project/security.md",
    "clients/python/README.md": "how-to/python.md",
    "deploy/README.md": "operate/deploy.md",
}
# Source files of generated pages, and these pages.
_REFERENCE = {
    "protos": "reference/api/registry.md",
    **{f"protos/pseudoword/{name}/v1/{name}.proto": f"reference/api/{name}.md" for name in site_reference.SERVICES},
}
_PLACES = _OUTSIDE | _REFERENCE
_SOURCES = {page: file for file, page in _OUTSIDE.items()}
_FENCE = re.compile(r"^\s*```")
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?!\w+:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/ and the generated pages."""
    for source, page in _OUTSIDE.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text("utf-8")))
    for page, text in site_reference.pages(_ROOT).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page, outside of its code blocks."""
    here = page.file.src_uri
    if here.startswith("reference/"):
        return markdown
    folder = posixpath.dirname(_SOURCES.get(here, f"docs/{here}"))
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else _LINK.sub(lambda link: _rewritten(link, folder, here), line))
    return "\n".join(lines)


def _rewritten(link: re.Match[str], folder: str, here: str) -> str:
    target = posixpath.normpath(posixpath.join(folder, link["path"]))
    place = _PLACES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
    if place is not None:
        address = posixpath.relpath(place, posixpath.dirname(here))
        return f"{link['image']}[{link['text']}]({address}{link['anchor'] or ''})"
    return link["text"] if (_ROOT / target).exists() else link[0]
