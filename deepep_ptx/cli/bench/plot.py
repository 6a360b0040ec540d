# SPDX-License-Identifier: MIT
"""Time against SMs, with the floor and the copy engine drawn in."""

import math

from deepep_ptx.cli import picture

COLUMNS = 4
COLOURS = ("#35608d", "#c44e52", "#55a868", "#8172b2", "#ccb974", "#64b5cd", "#937860", "#da8bc3")


def draw(made, path):
    """Write the picture of a timed record to `path`: a panel for each call, rows, tokens and
    routing, a line for each policy and peer; ValueError when it cannot be written."""
    panels = _panels(made)
    columns = min(COLUMNS, len(panels))
    figure = picture.figure(4.2 * columns, 3.4 * math.ceil(len(panels) / columns) + 0.5)
    options = made["options"]
    figure.suptitle(f"{made['ranks']} ranks on {made['machine']['gpus'][made['devices'][0]]}, "
                    f"hidden {options['hidden']}, top-{options['topk']} of {options['experts']}",
                    color=picture.INK)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    axes = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    for panel, (title, lines) in zip(axes, panels.items(), strict=False):
        _panel(panel, title, lines, colours, made["links"])
    for empty in list(axes)[len(panels):]:
        empty.set_visible(False)
    picture.save(figure, path)


def _panels(made):
    """Title -> policy -> its cases, by SMs."""
    panels = {}
    peers = [case for peer in made["peers"] for case in peer.get("cases", ())
             if case["policy"] == peer["name"]]
    for case in [*made["cases"], *peers]:
        what = case["what"] if case["what"] == "layout" else f"{case['what']} {case['dtype']}"
        title = f"{what}, {case['tokens']} tokens"
        if case["routing"] != "uniform":
            title += f" {case['routing']}"
        panels.setdefault(title, {}).setdefault(case["policy"], []).append(case)
    return panels


def _panel(axes, title, lines, colours, links):
    for name, cases in lines.items():
        if cases[0]["sms"] is None:     # whoever chooses its own
            axes.axhline(_time(cases[0])["median_us"], color=colours[name], linewidth=1,
                         label=f"{name} (call)")
            continue
        cases = sorted(cases, key=lambda case: case["sms"])
        sms, of = [case["sms"] for case in cases], cases[0]["of"]
        axes.plot(sms, [_time(case)["median_us"] for case in cases], "o-", markersize=3,
                  color=colours[name], label=name if of == "kernel" else f"{name} (call)")
        axes.fill_between(sms, [_time(case)["p10_us"] for case in cases],
                          [_time(case)["p90_us"] for case in cases], alpha=0.15,
                          color=colours[name])
    first = next(iter(lines.values()))[0]
    if first["floor_us"]:
        axes.axhline(first["floor_us"], color=picture.INK, linewidth=1, linestyle="--",
                     label="floor: copy engine, both ways")
        axes.axhline(first["bytes"]["wire"] / links["copy_engine_one_way_gb_s"] / 1e3,
                     color=picture.INK, linewidth=1, linestyle=":", label="copy engine, one way")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("SMs")
    axes.set_ylabel("us")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _time(case):
    return case[case["of"]]
