# SPDX-License-Identifier: MIT
"""A picture of a run: who sent how much to whom, and how busy each expert was."""

import numpy as np

from deepep_ptx.cli import picture
from deepep_ptx.cli.demo.report import counted
from deepep_ptx.cli.demo.rows import dispatch_row_bytes
from deepep_ptx.cli.picture import INK

MOST_NUMBERED = 16  # ranks whose cells have their numbers written in
BAR_COLOURS = ("#35608d", "#7fa6cf")    # of a rank's experts, in turn
SENT_BACK = {"pull": "as many", "push": "as many", "exact": "a row for each choice",
             "rank": "as many, of FP32 sums"}


def draw(report, path):
    """Write the picture of a `DemoReport` to `path`; ValueError when it cannot be written."""
    figure = picture.figure(13, 6.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    _title(figure, report)
    _traffic(figure, left, report)
    _load(right, report)
    picture.save(figure, path)


def _title(figure, report):
    s = report.settings
    figure.suptitle(
        f"{counted(s.num_ranks, 'rank')}, "
        f"{counted(sum(r.num_tokens for r in report.ranks), 'token')}, "
        f"hidden {s.hidden} {s.dtype}, {counted(s.num_experts, 'expert')}, top-{s.num_topk}",
        color=INK)


def _traffic(figure, axes, report):
    """The rank x rank matrix, its colours in rows and in bytes."""
    from matplotlib.patches import Rectangle

    rows, row_bytes = report.traffic, dispatch_row_bytes(report.settings)
    num_ranks, most = len(rows), max(1, rows.max())
    unit, unit_bytes = ("MB", 1e6) if most * row_bytes >= 1e5 else ("kB", 1e3)
    image = axes.imshow(rows, cmap="viridis", vmin=0, vmax=most)
    axes.set_title(f"Rows dispatched (combine sends back {SENT_BACK[report.settings.way]})",
                   fontsize=11)
    axes.set_xlabel("to rank (framed: rows that stay on their rank)")
    axes.set_ylabel("from rank")
    ticks = np.arange(0, num_ranks, -(-num_ranks // MOST_NUMBERED))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    width = 1.2 if num_ranks <= MOST_NUMBERED else 0.5
    for corner in np.arange(num_ranks) - 0.48:
        axes.add_patch(Rectangle((corner, corner), 0.96, 0.96, fill=False, edgecolor="white",
                                 linewidth=width))
    bar = figure.colorbar(image, ax=axes, shrink=0.82, pad=0.03)
    bar.set_label("rows")
    in_bytes = bar.ax.secondary_yaxis("left", functions=(lambda r: r * row_bytes / unit_bytes,
                                                         lambda b: b * unit_bytes / row_bytes))
    in_bytes.set_ylabel(f"payload, {unit} ({row_bytes:,} bytes a row)")
    if num_ranks > MOST_NUMBERED:
        return
    # Bytes too where they fit into a cell.
    with_bytes, size = num_ranks <= 10, 7 if num_ranks > 4 else 10
    for (source, to), count in np.ndenumerate(rows):
        text = f"{count}"
        if with_bytes:
            text += f"\n{count * row_bytes / unit_bytes:.2f} {unit}"
        axes.text(to, source, text, ha="center", va="center", fontsize=size,
                  color="white" if image.norm(count) < 0.6 else INK)


def _load(axes, report):
    """Choices of each expert, the experts of a rank in one colour."""
    load, num_ranks = report.expert_load, report.settings.num_ranks
    num_local_experts = len(load) // num_ranks
    experts, mean, busiest = np.arange(len(load)), load.mean(), int(load.argmax())
    axes.bar(experts, load, width=0.85 if len(load) <= 128 else 1.0,
             color=[BAR_COLOURS[e // num_local_experts % 2] for e in experts])
    axes.axhline(mean, color="#c44e52", linewidth=1.2, linestyle="--", label=f"mean {mean:.1f}")
    axes.set_title(f"Load of the experts: the busiest is {busiest}, with "
                   f"{load[busiest] / max(mean, 1e-9):.1f} times the mean", fontsize=11)
    axes.set_xlabel("expert (colours and ticks: from rank to rank)")
    axes.set_ylabel("choices")
    axes.set_xticks(experts[::num_local_experts * -(-num_ranks // MOST_NUMBERED)])
    axes.set_xlim(-0.6, len(load) - 0.4)
    axes.set_ylim(0, 1.12 * max(1, load.max()))     # the legend stands above the bars
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
