# SPDX-License-Identifier: MIT
"""Pictures: what draws them, and where they go.

matplotlib draws them, and is imported here only, when somebody asks for a picture.
"""

from pathlib import Path

FORMATS = (".png", ".svg", ".pdf")
INK = "#222222"


def require(path):
    """Raise ValueError unless a picture can be drawn into `path`; None is no picture."""
    if path is None:
        return
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as error:
        raise ValueError("plot: needs matplotlib, which is not installed: "
                         "pip install matplotlib") from error
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"plot: must be a file named {', '.join(FORMATS)}, got {path}")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"plot: cannot write {path}: no such directory")


def figure(width, height):
    """An empty figure of so many inches, laid out by what it holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    made.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(made)
    return made


def save(made, path):
    """Write a figure to `path`; ValueError when it cannot be written."""
    try:
        made.savefig(path)
    except OSError as error:
        raise ValueError(f"plot: cannot write {path}: {error.strerror}") from error
