# SPDX-License-Identifier: MIT
"""What `bench overlap` found, as text and as a picture."""

from deepep_ptx.cli import picture
from deepep_ptx.cli.bench.plot import COLOURS
from deepep_ptx.cli.tables import table


def text(made):
    """What the record holds, in lines for people."""
    options, machine = made["options"], made["machine"]
    lines = [f"{machine['gpus'][made['devices'][0]]}, GPUs {', '.join(map(str, made['devices']))}, "
             f"driver {machine['driver']}, {made['arch']}",
             f"{made['ranks']} ranks, {options['tokens']} tokens each, hidden {options['hidden']}, "
             f"bf16, top-{options['topk']} of {options['experts']} experts, seed {made['seed']}"]
    if made.get("wrong"):
        lines += ["", *(f"WRONG  {one['text']}" for one in made["wrong"])]
        return "\n".join([*lines, "no figures: a wrong result is not worth a time"])
    lines += ["bits equal to the reference's on all ranks, for every case",
              f"{made['rounds']} rounds of all after {made['warmup']}, each in an order of its "
              "own; a call is queued first, the GEMM behind it on another stream; medians of the "
              "slower rank", ""]
    rows = [("call", "policy", "GEMM", "SMs", "GEMM us", "beside", "slower", "SMs' share",
             "call us", "beside", "slower", "late")]
    rows += [(pair["what"], pair["policy"], gemm_name(pair), str(pair["sms"]),
              *(f"{pair[name]['median_us']:.1f}" for name in ("gemm_alone", "gemm_both")),
              f"{pair['gemm_slowdown']:.1f} %", f"{pair['sm_share']:.1f} %",
              *(f"{pair[name]['median_us']:.1f}" for name in ("comm_alone", "comm_both")),
              f"{pair['comm_slowdown']:.1f} %", f"{100 * pair['late']:.0f} %")
             for pair in made["pairs"]]
    return "\n".join([*lines, *table(rows, left=3), "SMs' share: what the GEMM would lose if all "
                      "it lost were the call's SMs while the call runs"])


def gemm_name(pair):
    """Of a pair's GEMM: MxNxK and how often."""
    return "x".join(map(str, pair["gemm"])) + f" * {pair['repeats']}"


def draw(made, path):
    """Write the picture of a record to `path`: the GEMM's slowdown and the call's time against
    SMs, a column for each call and GEMM, a colour for each policy."""
    columns = {}
    for pair in made["pairs"]:
        title = f"{pair['what']}, {gemm_name(pair)}"
        columns.setdefault(title, {}).setdefault(pair["policy"], []).append(pair)
    figure = picture.figure(4.2 * len(columns), 6.5)
    axes = figure.subplots(2, len(columns), squeeze=False)
    for column, (title, lines) in enumerate(columns.items()):
        upper, lower = axes[0][column], axes[1][column]
        for at, (policy, pairs) in enumerate(lines.items()):
            pairs = sorted(pairs, key=lambda pair: pair["sms"])
            sms, colour = [pair["sms"] for pair in pairs], COLOURS[at % len(COLOURS)]
            upper.plot(sms, [pair["gemm_slowdown"] for pair in pairs], "o-", markersize=3,
                       color=colour, label=policy)
            upper.plot(sms, [pair["sm_share"] for pair in pairs], ":", color=colour)
            for name, style in (("comm_both", "o-"), ("comm_alone", "--")):
                lower.plot(sms, [pair[name]["median_us"] for pair in pairs], style, markersize=3,
                           color=colour)
        upper.set_title(title, fontsize=9)
        for panel, label in ((upper, "GEMM slower, %; dotted: SMs' share"),
                             (lower, "call beside it, us; dashed: alone")):
            panel.set_xlabel("SMs")
            panel.set_xticks(sms)
            panel.set_ylabel(label)
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center",
                  ncols=len(COLOURS), frameon=False)
    picture.save(figure, path)
