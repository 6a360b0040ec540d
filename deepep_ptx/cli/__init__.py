# SPDX-License-Identifier: MIT
"""The `deepep-ptx` command.

Exit codes: 0 = done; 1 = a wrong bit, a problem found, or the run failed; 2 = bad input, one line
on stderr, or what is wrong with a PTX text.
"""

import argparse
import importlib
import os
import sys

import deepep_ptx
from deepep_ptx.cli.options import in_options
from deepep_ptx.errors import DeepEPError, KernelFault, RankError

# Command -> module of this package: `add(commands)` adds its parser and sets `command`, a function
# of the parsed arguments that returns the exit code.
COMMANDS = {
    "demo": "demo.command",
    "info": "info",
    "variants": "variants",
    "render": "render",
    "ab": "ab.command",
    "check": "check.command",
    "bench": "bench.command",
    "tune": "tune.command",
    "doctor": "doctor.command",
    "env": "env",
}
# Commands that say themselves whether the rendered text is stale, or have nothing to do with it.
LOOK_FOR_THEMSELVES = ("doctor", "env")


def main(argv=None):
    """Run the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # Only what was asked for: doctor has to run where other commands cannot even be imported.
    names = argv[:1] if argv[:1] and argv[0] in COMMANDS else COMMANDS
    try:
        try:
            args = parser(names).parse_args(argv)
            try:
                return args.command(args)
            finally:
                if argv[0] not in LOOK_FOR_THEMSELVES:
                    importlib.import_module("deepep_ptx.cli.catalogue").warn_if_stale()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()          # whoever read the report has read enough
        return 1
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except ValueError as error:
        return _refuse(error)
    except RankError as error:
        return _refuse(error.__cause__) if isinstance(error.__cause__, ValueError) else _fail(error)
    except DeepEPError as error:
        return _fail(error)
    except (ImportError, FileNotFoundError) as error:
        # Not built, or not whole.
        return _complain(f"{error}; `deepep-ptx doctor` looks for the cause", 1)
    except MemoryError as error:
        return _complain(f"not enough memory: {error or 'take fewer tokens, or shorter rows'}", 1)
    except OSError as error:
        if error.filename is None:      # of an open file: what is printed
            _drop_output()
        return _complain(f"cannot write {error.filename or 'the output'}: {error.strerror}", 1)


class Parser(argparse.ArgumentParser):
    """Bad input is one line on stderr; no option is taken for another that it begins like."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        # Here, and not by the top parser, so that the error names this parser's --help.
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message):
        text = message.removeprefix("argument ")
        self.exit(2, f"deepep-ptx: {text}; see {self.prog} --help\n")


def parser(names=COMMANDS):
    """The command line, of all commands or of some."""
    top = Parser(prog="deepep-ptx", description="MoE dispatch and combine in hand-written PTX")
    top.add_argument("--version", action="version", version=f"deepep-ptx {deepep_ptx.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        importlib.import_module(f"{__name__}.{COMMANDS[name]}").add(commands)
    return top


def _drop_output():
    """Leave nothing to flush at exit, where nobody takes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error):
    """Bad input: one line, whatever the error's text has."""
    return _complain(" ".join(str(error).split()), 2)


def _fail(error):
    """The run failed: a kernel's fault is printed whole, it is the report to work with."""
    return _complain(error.__cause__ if isinstance(error.__cause__, KernelFault) else error, 1)


def _complain(text, code):
    print(f"deepep-ptx: {in_options(str(text))}", file=sys.stderr)
    return code
