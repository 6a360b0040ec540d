# SPDX-License-Identifier: MIT
"""The executor's front end against texts that nobody meant: each loads, and then runs to an end or
a `KernelFault`, or is a `PtxError` that names its line.  Nothing else, in bounded time and memory.

Mutations are a function of the seed; a text that fails is kept in a file that the failure names.
"""

import random
import re
import resource
import signal
import string
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
from emu.statements import kernel, spellings
from ptx_corpus import REFUSED

import deepep_ptx
from deepep_ptx._emu import World
from deepep_ptx.emu.parse import parse
from deepep_ptx.errors import KernelFault, PtxError

CPU_S = 5                              # for one text; the longest takes a tenth of it
GROWTH_KIB = 256 * 1024                # of memory, by one text
RENDERED = Path(deepep_ptx.__file__).parent / "_ptx"
SMALL = ("ep_abort", "ep_copy", "ep_layout")
LARGE = ("ep_dispatch_vec_ld_na", "ep_dispatch_bulk", "ep_combine_vec_ld_na", "ep_combine_bulk")

_TOKEN = re.compile(r'"[^"\n]*"|//[^\n]*|[\w$%]+|\s+|.', re.DOTALL)
_NUMBERS = [str(n) for p in (0, 1, 4, 5, 7, 10, 16, 31, 32, 40, 62, 63, 64, 100)
            for n in (2 ** p - 1, 2 ** p, 2 ** p + 1, -(2 ** p))] + \
    ["0x8000000000000000", "0xffffffffffffffff", "08", "0b", "0x", "9" * 5000, "0f7fc00000", "1U"]
_CHARACTERS = [*string.punctuation, "\0", "\t", "\r", "\x7f", "\xa0", "\u0663", "\u2028", "\ud800",
               "\U0001d7d8", "/*", "*/", "//", '"']


class TookTooLong(BaseException):
    """No handler of the code under test takes it."""


@contextmanager
def bounded():
    """Ends what takes too much time; fails for what took too much memory."""
    def stop(*_):
        raise TookTooLong(f"{CPU_S} s of CPU time")

    handler = signal.signal(signal.SIGVTALRM, stop)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < GROWTH_KIB, f"{grown} KiB more memory"


def run(text):
    """Loads and runs every entry, on 64 KiB of zeros.  PtxError or KernelFault, or it ends.

    Without the check for uninitialised reads, at which nearly every run would end at once.
    """
    for entry in parse(text).entries:
        world = World(1, sms_per_rank=1, checks="off", stall_limit=10_000, instruction_limit=20_000)
        loaded = world.load(text, entry.name)
        memory = world.alloc(0, 65536)
        world.write(0, memory, bytes(65536))
        params = struct.pack("<Q", memory + 4096) * (loaded.param_bytes // 8 + 1)
        world.launch(0, loaded, params[:loaded.param_bytes], 2, min(64, entry.max_threads or 64))
        world.run()


def outcome(text):
    """"ran", "fault" or the PtxError."""
    with bounded():
        try:
            run(text)
        except KernelFault:
            return "fault"
        except PtxError as error:
            return error
    return "ran"


def shipped(names, arch="sm_90"):
    return [(RENDERED / arch / f"{name}.ptx").read_text() for name in names]


def of_all_forms(per_text=40):
    """Texts that have every spelling of every instruction form between them."""
    statements = [statement for statement, _ in spellings((8, 0), 90)]
    random.Random(0).shuffle(statements)
    return [kernel(*statements[i:i + per_text], version="8.0")
            for i in range(0, len(statements), per_text)]


def corpus():
    return [text for text, *_ in REFUSED if len(text) < 4000]


# -- mutations -------------------------------------------------------------------------------------

def _span(rng, tokens, longest):
    begin = rng.randrange(len(tokens) + 1)
    return begin, min(len(tokens), begin + rng.randint(1, longest))


def _delete(rng, tokens, donor):
    begin, end = _span(rng, tokens, 8)
    del tokens[begin:end]


def _duplicate(rng, tokens, donor):
    begin, end = _span(rng, tokens, 200)
    tokens[end:end] = tokens[begin:end]


def _repeat(rng, tokens, donor):
    begin, end = _span(rng, tokens, 3)
    tokens[end:end] = tokens[begin:end] * rng.choice((2, 60, 2000))


def _number(rng, tokens, donor):
    places = [i for i, t in enumerate(tokens) if t[0].isdigit()]
    if places:
        tokens[rng.choice(places)] = rng.choice(_NUMBERS)


def _replace(rng, tokens, donor):
    if tokens:
        tokens[rng.randrange(len(tokens))] = rng.choice(donor)


def _splice(rng, tokens, donor):
    begin, end = _span(rng, tokens, 40)
    first, last = _span(rng, donor, 400)
    tokens[begin:end] = donor[first:last]


def _character(rng, tokens, donor):
    place = rng.randrange(len(tokens) + 1)
    tokens[place:place] = rng.choice(_CHARACTERS)


def _cut(rng, tokens, donor):
    del tokens[rng.randrange(len(tokens) + 1):]


def _word(rng, tokens, donor):
    """A word of the text in place of another that begins like it: a register's, an opcode's."""
    words = [i for i, t in enumerate(tokens) if t[0].isalpha() or t[0] in "$%"]
    if words:
        place = rng.choice(words)
        tokens[place] = tokens[rng.choice([i for i in words if tokens[i][0] == tokens[place][0]])]


def _lines(rng, tokens, most):
    """Where one to `most` lines of the body begin and end, and where another begins."""
    ends = [i + 1 for i, t in enumerate(tokens) if "\n" in t][8:] or [len(tokens)]
    first = rng.randrange(len(ends))
    last = min(len(ends) - 1, first + rng.randint(1, most))
    return ends[first], ends[last], rng.choice(ends)


def _move_line(rng, tokens, donor):
    begin, end, place = _lines(rng, tokens, 1)
    line = tokens[begin:end]
    del tokens[begin:end]
    tokens[place:place] = line


def _drop_lines(rng, tokens, donor):
    begin, end, _ = _lines(rng, tokens, 4)
    del tokens[begin:end]


def _copy_lines(rng, tokens, donor):
    begin, end, place = _lines(rng, tokens, 30)
    tokens[place:place] = tokens[begin:end]


# Those of the first list leave many texts whole enough to be run, those of the second few.
_GENTLE = [_number, _word, _move_line, _drop_lines, _copy_lines]
_ROUGH = [_delete, _duplicate, _repeat, _replace, _splice, _character, _cut]


def mutated(rng, hosts, donors):
    """A host's text with one to three mutations, some with tokens of a donor."""
    tokens = list(rng.choice(hosts))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(rng.choice((_GENTLE, _GENTLE, _ROUGH)))(rng, tokens, rng.choice(donors))
    return "".join(tokens)


# -- tests -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "line", "says"), REFUSED, ids=[says for *_, says in REFUSED])
def test_refused_with_the_line(text, line, says):
    error = outcome(text)
    assert isinstance(error, PtxError), error
    assert (error.file, error.line) == ("<ptx>", line)
    assert says in str(error)
    assert len(str(error)) < 4000
    str(error).encode()


@pytest.mark.parametrize("text", shipped(SMALL + LARGE), ids=SMALL + LARGE)
def test_what_is_mutated_loads(text):
    assert outcome(text) in ("ran", "fault")


@pytest.mark.parametrize(("hosts", "count", "seed"), [
    ("small", 400, 1), ("small", 400, 2), ("large", 30, 3), ("large", 30, 4), ("forms", 400, 5),
    ("forms", 400, 6), ("corpus", 400, 7),
])
def test_mutated_texts_load_or_name_a_line(hosts, count, seed, tmp_path):
    rng = random.Random(seed)
    read = {"small": lambda: shipped(SMALL), "large": lambda: shipped(LARGE),
            "forms": of_all_forms, "corpus": corpus}[hosts]
    texts = [_TOKEN.findall(text) for text in read()]
    donors = [_TOKEN.findall(text) for text in [*corpus(), *shipped(LARGE)]]
    counts = {"ran": 0, "fault": 0, "refused": 0}
    for number in range(count):
        text = mutated(rng, texts, donors)
        kept = tmp_path / f"{seed}-{number}.ptx"
        kept.write_bytes(text.encode(errors="surrogatepass"))
        try:
            found = outcome(text)
        except BaseException as error:
            error.add_note(f"the text is {kept}")
            raise
        if isinstance(found, PtxError):
            assert found.file and found.line > 0 and str(found).startswith(f"{found.file}:"), kept
            found = "refused"
        counts[found] += 1
        kept.unlink()
    print(counts)
    # Mutations that leave no text whole, or none broken, would show nothing.
    assert counts["refused"] >= count // 20
    assert hosts == "corpus" or counts["ran"] + counts["fault"] >= count // 20
