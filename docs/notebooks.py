"""Executes the notebooks of examples/: what they print and draw is in docs/notebooks/.

python docs/notebooks.py [NAME …]
"""

import sys
from pathlib import Path

import jupytext
import nbclient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = DOCS.parent / "examples" / "notebooks"


def write_page(notebook, name, folder=DOCS / "notebooks"):
    """Writes an executed notebook as a page with its pictures."""
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        # TensorFlow's messages of the machine.
        outputs[:] = [one for one in outputs if one.get("name") != "stderr"]
        for one in outputs:
            html = one.get("data", {}).get("text/html")
            if html:  # Indented, Markdown would take it for code.
                one["data"]["text/html"] = "\n".join(map(str.strip, html.strip().splitlines()))
    resources = {"unique_key": name, "output_files_dir": f"{name}_files"}
    page, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    (folder / f"{name}_files").mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    for path, content in resources["outputs"].items():
        (folder / path).write_bytes(content)


def main(names):
    for name in names or sorted(path.stem for path in NOTEBOOKS.glob("*.py")):
        notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
        resources = {"metadata": {"path": str(NOTEBOOKS)}}
        nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
        write_page(notebook, name)


if __name__ == "__main__":
    main(sys.argv[1:])
