"""MkDocs hooks: pages and files of the repository that are not in docs/, and links to them.

A page may link to any file of the repository, as it does where it is read in the checkout. Such a
file becomes a part of the site: a Python file as a page that shows it, any other as it is.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parent.parent
# The pages of the site that are not in docs/, under the names that they have there.
PAGES = {
    "index.md": "README.md",
    "results/README.md": "results/README.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "BUILD_NOTES.md": "BUILD_NOTES.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
# GitHub nests a list in another by two or three spaces, MkDocs by four.
NESTED = re.compile(r"^ {2,3}(?=- )", re.M)
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def _path(uri):
    """The file of the repository that is `uri` in the site."""
    return REPOSITORY / PAGES.get(uri, f"docs/{uri}")


def _uri(path):
    """The name in the site of a file of the repository."""
    path = os.path.relpath(path, REPOSITORY)
    names = {file: uri for uri, file in PAGES.items()}
    if path in names:
        return names[path]
    return path.removeprefix("docs/") + (".md" if path.endswith(".py") else "")


def _targets(uri, markdown):
    """The files of the repository that a page links to."""
    folder = _path(uri).parent
    return [path for _, link in LINK.findall(markdown) if (path := folder / link).is_file()]


def on_files(files, config):
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / path)))
    for page in [file for file in files if file.is_documentation_page()]:
        for path in _targets(page.src_uri, page.content_string):
            uri = _uri(path)
            if files.get_file_from_path(uri) is not None:
                continue
            if path.suffix == ".py":
                code = path.read_text(encoding="utf-8")
                content = f"# {os.path.relpath(path, REPOSITORY)}\n\n```python\n{code}```\n"
                file = File.generated(config, uri, content=content)
            else:
                file = File.generated(config, uri, abs_src_path=str(path))
            files.append(file)
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    folder = _path(uri).parent

    def within_site(match):
        before, link = match.groups()
        path = folder / link
        if not path.is_file():
            return match[0]
        return before + os.path.relpath(_uri(path), os.path.dirname(uri) or ".")

    return LINK.sub(within_site, NESTED.sub("    ", markdown))
