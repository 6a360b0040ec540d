# SPDX-License-Identifier: MIT
"""JSON and TOML of files that anybody may have edited: what is wrong with one is a ValueError."""

import json
import tomllib
from pathlib import Path


def read_json(path):
    """What a file holds.

    Raises:
        ValueError: it is no JSON; the text says why, without the file's name.
        OSError: it cannot be read.
    """
    return _parsed(json.loads, Path(path).read_bytes(), "JSON")


def read_toml(path):
    """What a file holds; raises as `read_json`."""
    return toml_of(Path(path).read_bytes())


def toml_of(data):
    """What TOML, bytes of UTF-8, holds.  Raises ValueError."""
    return _parsed(lambda text: tomllib.loads(text.decode()), data, "TOML")


def _parsed(parse, data, language):
    try:
        return parse(data)
    except RecursionError:
        raise ValueError(f"must be {language}: it is nested too deeply") from None
    except ValueError as error:     # of the parser's own kinds, and of text that is no UTF-8
        raise ValueError(f"must be {language}: {error}") from error


def check_fields(value, fields, where):
    """Raise ValueError unless `value` is a dict that has each of `fields` as a value of its type.

    fields: name -> type, or a tuple of types.  where: what the text calls the value.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table, is {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{where} has no {name}")
        is_bool = isinstance(value[name], bool)         # which is an int to Python
        if not isinstance(value[name], kind) or is_bool != (kind is bool):
            raise ValueError(f"{where}: {name} is {value[name]!r:.60}")
