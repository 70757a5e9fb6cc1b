"""Run the notebooks and store them with small outputs: ``python notebooks/refresh.py [NUMBER …]``.

Figures are stored as pictures, which GitHub shows and which are small; running a cell makes them interactive.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, quick: bool = False) -> Any:
    """Run a notebook in a fresh kernel and return it with its outputs.

    Parameters
    ----------
    quick
        Fewer clips; what the tests run.
    """
    notebook = nbformat.read(path, as_version=4)
    before = os.environ.pop("QUICK", None)
    if quick:
        os.environ["QUICK"] = "1"
    os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
    try:
        client = NotebookClient(
            notebook, timeout=600 if quick else 1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}},
            store_widget_state=False
        )
        client.execute()
    finally:
        os.environ.pop("QUICK", None)
        if before is not None:
            os.environ["QUICK"] = before
    return notebook


def slim(notebook: Any) -> Any:
    """Replace figures by pictures, and leave out what changes from run to run.

    Of widgets, which need a kernel, their pictures stay where they have some.
    """
    import plotly.graph_objects as go
    from PIL import Image

    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                continue
            data = output.get("data", {})
            if WIDGET in data:
                pictures = {kind: part for kind, part in data.items() if kind.startswith("image/")}
                if not pictures:
                    continue
                output["data"] = pictures
            if FIGURE in data:
                made = go.Figure({key: data[FIGURE][key] for key in ("data", "layout")})
                picture = Image.open(io.BytesIO(made.to_image("png", scale=1))).convert("RGB")
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=85, optimize=True)
                output["data"] = {"image/jpeg": base64.b64encode(buffer.getvalue()).decode()}
            kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    return notebook


def main(wanted: list[str]) -> None:
    """Run and store the notebooks whose names begin with one of the given numbers; all without."""
    paths = {path.name[:2]: path for path in sorted(HERE.glob("[0-9][0-9]_*.ipynb"))}
    chosen = [number.zfill(2) for number in wanted] or list(paths)
    if unknown := set(chosen) - set(paths):
        sys.exit(f"notebook {min(unknown)} given; expected one of {', '.join(paths)}")
    for path in (paths[number] for number in chosen):
        part = path.with_name(f".{path.name}.part")
        nbformat.write(slim(execute(path)), part)
        os.replace(part, path)
        print(path.name, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main(sys.argv[1:])
