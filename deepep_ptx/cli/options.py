# SPDX-License-Identifier: MIT
"""What options are called and what is said of them."""

import re

# Setting of `demo.Settings` -> its option where the names differ.
OPTIONS = {
    "num_ranks": "ranks", "num_tokens": "tokens", "num_experts": "experts",
    "num_groups": "groups", "num_topk_groups": "topk-groups", "num_topk": "topk",
    "save_input": "save-input", "num_sms": "sms",
}
HELP = {
    "num_ranks": "ranks, each a virtual GPU",
    "num_tokens": "tokens per rank, on the average: shares are uneven",
    "hidden": "elements of a row, a multiple of 8",
    "num_experts": "experts of all ranks",
    "num_groups": "groups of experts",
    "num_topk_groups": "groups that a token may choose from",
    "num_topk": "experts per token",
    "num_sms": "CTAs of each kernel",
    "seed": "of embeddings, experts and scheduler",
    "executor": "what runs the kernels: emu, the CPU executor, or cuda (default: "
                "DEEPEP_PTX_EXECUTOR, else cuda where a GPU is usable, else emu)",
    "scheduler": "order of warps on the CPU executor",
    "policy": "how payload moves: fast, safe, aggressive, bulk, a policy or a variant's symbol "
              "(default: DEEPEP_PTX_POLICY, then DISABLE_AGGRESSIVE_PTX_INSTRS, else fast)",
    "arch": "target whose kernels run (default: the best that runs)",
    "text": "file to send around (default: the text that ships)",
    "unit": "what a token is",
    "mode": "normal, or ll: low-latency dispatch and combine",
    "dtype": "of the rows on their way to the experts: bf16, or fp8 (e4m3) with a float32 scale "
             "per 128 elements (default: the input's, which is bf16 for a text)",
    "combine": "pull: experts write over what they received; push: into arrays of their own "
               "(default: pull; push with fp8, which needs it)",
    "reduce": "how combine adds up with mode ll: exact, in the order of the choices, or rank, by "
              "rank first (default: what moves fewer bytes)",
    "checks": "of the CPU executor; off: leave out the check for uninitialised reads",
    "worst": "worst-case mode: results have the size of the worst case, nobody waits for totals",
    "input": "an .npz file with the job in place of a text; it says how many ranks, tokens and so "
             "on (see docs/demo.md)",
    "save_input": "write the job to a file that --input takes",
    "plot": "draw traffic between ranks and load of experts into this picture (.png, .svg, .pdf); "
            "needs matplotlib",
}
# Settings' names in errors; other names are words of the language too, and start a text at most.
_NAMES = re.compile(rf"\b({'|'.join(OPTIONS)})\b")


def names(text):
    """Of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text):
    """Of a list with commas."""
    return [int(number) for number in names(text)]


def in_options(text):
    """An error's text with options in place of the settings that they set."""
    name = text.partition(":")[0]
    if name not in HELP:
        return text
    rest = text[len(name):]
    if name != "input":     # the entries of a file have names of their own
        rest = _NAMES.sub(lambda match: f"--{OPTIONS[match[1]]}", rest)
    return f"--{OPTIONS.get(name, name)}{rest}"
