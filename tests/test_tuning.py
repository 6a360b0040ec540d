# SPDX-License-Identifier: MIT
"""Tuning files: written and read, refused by name, and found."""

import copy
import json
import warnings
from dataclasses import replace

import pytest

from deepep_ptx import Buffer, DeepEPError, RankError, TuningError, run_ranks
from deepep_ptx.tuning import Entry, Header, load, save, size_class
from deepep_ptx.tuning_files import default_path, find

GPU = "NVIDIA H100 80GB HBM3"
HEADER = Header(package="0.1.0", gpu=GPU, ranks=2, nodes=1, date="2026-11-24T12:00:00+00:00",
                driver="580.159.04", seed=0, shape={"hidden": 7168, "topk": 8})
ENTRY = Entry(op="dispatch", itemsize=2, tokens=4096, row_bytes=16384, sms=13, policy="bulk",
              knobs={"stages": 4, "stage_bytes": 4096}, median_us=191.5)


@pytest.fixture
def path(tmp_path):
    """A file that fits 2 ranks on H100s."""
    made = tmp_path / "h100.json"
    save(made, HEADER, [ENTRY])
    return made


def change(path, where, value):
    """Set the place `where` of the document; KeyError of `value`: leave it out."""
    document = json.loads(path.read_text())
    *parents, last = where
    target = document
    for parent in parents:
        target = target[parent]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    path.write_text(json.dumps(document))


def refused(path, **needed):
    with pytest.raises(TuningError) as caught:
        find(path, **{"gpu": GPU, "ranks": 2, "arch": "sm_90"} | needed)
    return caught.value


def test_written_and_read(path):
    made = load(path)
    assert made.header == HEADER and dict(made.entries) == {("dispatch", 2, 4096, 16384): ENTRY}
    assert find(path, GPU, 2, "sm_90").entries == made.entries
    save(path, HEADER, [ENTRY, replace(ENTRY, op="combine_pull")])
    assert len(load(path).entries) == 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("number, made", [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (7168, 8192),
                                          (14336, 16384), (8193, 16384)])
def test_size_class(number, made):
    assert size_class(number) == made


# -- refusals ---------------------------------------------------------------------------------

def test_another_gpu(path):
    error = refused(path, gpu="NVIDIA A100-SXM4-80GB")
    assert str(error) == (f"tuning: {path}: header.gpu: must be 'NVIDIA A100-SXM4-80GB', "
                          f"got '{GPU}'")
    assert (error.file, error.field, error.has) == (str(path), "header.gpu", GPU)
    assert error.needed == "'NVIDIA A100-SXM4-80GB'" and isinstance(error, ValueError)


def test_another_number_of_ranks(path):
    assert str(refused(path, ranks=8)) == f"tuning: {path}: header.ranks: must be 8, got 2"


def test_no_file(tmp_path):
    missing = tmp_path / "none.json"
    assert str(refused(missing)) == (f"tuning: {missing}: file: must be one that can be read, "
                                     "got 'No such file or directory'")
    assert refused(tmp_path).field == "file"            # a folder


@pytest.mark.parametrize("text, says", [
    ("", "must be JSON"), ("{", "must be JSON"), ("[]", "must be an object, got 'list'"),
    ("\xff\xfe", "must be JSON"),
])
def test_no_tuning_file(path, text, says):
    path.write_bytes(text.encode("latin-1"))
    error = refused(path)
    assert str(error).startswith(f"tuning: {path}: file: {says}") and error.field == "file"


@pytest.mark.parametrize("where, value, text", [
    (["schema"], 2, "schema: must be 1, what this version reads, got 2"),
    (["schema"], KeyError, "schema: must be 1, what this version reads, got None"),
    (["header"], KeyError, "header: must be an object, got 'NoneType'"),
    (["header", "gpu"], KeyError, "header.gpu: must be a string, got None"),
    (["header", "ranks"], "2", "header.ranks: must be an integer, got '2'"),
    (["header", "ranks"], True, "header.ranks: must be an integer, got True"),
    (["header", "nodes"], 2, "header.nodes: must be 1, got 2"),
    (["header", "colour"], "red", "header.colour: must be left out; it is unknown, got 'red'"),
    (["entries"], {}, "entries: must be a list, got 'dict'"),
    (["entries", 0], 3, "entries[0]: must be an object, got 'int'"),
    (["entries", 0, "op"], "combine", "entries[0].op: must be one of dispatch, combine_pull, com"),
    (["entries", 0, "itemsize"], 4, "entries[0].itemsize: must be 1 or 2, got 4"),
    (["entries", 0, "tokens"], 4095, "entries[0].tokens: must be a power of two, got 4095"),
    (["entries", 0, "tokens"], 0, "entries[0].tokens: must be a power of two, got 0"),
    (["entries", 0, "row_bytes"], 14336, "entries[0].row_bytes: must be a power of two, got 14"),
    (["entries", 0, "sms"], 0, "entries[0].sms: must be at least 1, got 0"),
    (["entries", 0, "sms"], 1.5, "entries[0].sms: must be an integer, got 1.5"),
    (["entries", 0, "median_us"], 0, "entries[0].median_us: must be above 0, got 0"),
    (["entries", 0, "policy"], "quick", "entries[0].policy: must be a policy that sm_90 has, got"),
    (["entries", 0, "policy"], "ld_nc_na", None),
    (["entries", 0, "knobs"], [], "entries[0].knobs: must be an object, got []"),
    (["entries", 0, "knobs"], {"stages": "4"}, "entries[0].knobs.stages: must be an integer, got "),
    (["entries", 0, "knobs"], {"stages": 1}, "entries[0].knobs.stages: must be in [2, "),
    (["entries", 0, "knobs"], {"stage_bytes": 24},
     "entries[0].knobs.stage_bytes: must be a multiple of 16 in [16, "),
    (["entries", 0, "knobs"], {"depth": 4}, "entries[0].knobs.depth: must be left out; it is unkn"),
])
def test_fields_that_are_wrong(path, where, value, text):
    change(path, where, value)
    if text is None:            # ld_nc_na is defined in dispatch, where nobody writes what it reads
        assert find(path, GPU, 2, "sm_90")
        change(path, ["entries", 0, "op"], "combine_pull")
        text = "entries[0].policy: must be a policy whose loads PTX defines in combine"
    assert str(refused(path)).startswith(f"tuning: {path}: {text}")


def test_two_entries_of_one_key(path):
    change(path, ["entries"], [copy.copy(json.loads(path.read_text())["entries"][0])] * 2)
    assert str(refused(path)).startswith(f"tuning: {path}: entries[1]: must be the only entry of ")


# -- where files are found --------------------------------------------------------------------

def test_default_path(tmp_path, monkeypatch):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert default_path(GPU, 2, environ) == (tmp_path / "deepep_ptx" / "tuning"
                                             / "nvidia-h100-80gb-hbm3-2.json")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(default_path("A", 4, {})) == "/home/somebody/.config/deepep_ptx/tuning/a-4.json"


def test_argument_then_variable_then_the_users_file(tmp_path, path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert find(None, GPU, 2, "sm_90", environ) is None
    users = default_path(GPU, 2, environ)
    save(users, HEADER, [])
    assert find(None, GPU, 2, "sm_90", environ).path == users
    assert find(None, GPU, 4, "sm_90", environ) is None
    named = tmp_path / "named.json"
    save(named, HEADER, [])
    environ["DEEPEP_PTX_TUNING"] = str(named)
    assert find(None, GPU, 2, "sm_90", environ).path == named
    assert find(path, GPU, 2, "sm_90", environ).path == path
    assert find(False, GPU, 2, "sm_90", environ) is None
    environ["DEEPEP_PTX_TUNING"] = ""
    assert find(None, GPU, 2, "sm_90", environ).path == users


def test_the_variable_is_named_in_errors(tmp_path):
    with pytest.raises(TuningError, match="^DEEPEP_PTX_TUNING: .*none.json: file: must be one th"):
        find(None, GPU, 2, "sm_90", {"DEEPEP_PTX_TUNING": str(tmp_path / "none.json")})


def test_a_users_file_that_does_not_fit_is_ignored_with_one_warning(tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    users = default_path(GPU, 2, environ)
    save(users, replace(HEADER, ranks=4), [])
    with pytest.warns(RuntimeWarning, match="the file is ignored: .*header.ranks: must be 2") as w:
        assert find(None, GPU, 2, "sm_90", environ) is None
    assert len(w) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(None, GPU, 2, "sm_90", environ) is None


@pytest.mark.parametrize("argument", [True, 3, b"x"])
def test_an_argument_that_is_no_path(argument):
    with pytest.raises(TypeError, match="^tuning: must be a path, None or False, got "):
        find(argument, GPU, 2, "sm_90")


# -- in a Buffer ------------------------------------------------------------------------------

def test_all_ranks_refuse_a_file_that_was_named(path):
    def main(comm):
        # Rank 1's file fits, and it does not go on without rank 0.
        with pytest.raises((TuningError, DeepEPError)) as caught:
            Buffer(comm, tuning=path if comm.rank == 0 else False)
        return str(caught.value)

    first, second = run_ranks(main, 2, executor="emu")
    text = f"tuning: {path}: header.gpu: must be 'CPU executor', got '{GPU}'"
    assert first == text and second == f"rank 0 failed: TuningError: {text}"


def test_a_buffer_has_its_file(path):
    save(path, replace(HEADER, gpu="CPU executor"), [ENTRY])

    def main(comm):
        with Buffer(comm, tuning=str(path)) as ours, Buffer(comm, tuning=False) as without:
            return ours.tuning.path, without.tuning

    assert run_ranks(main, 2, executor="emu") == [(path, None)] * 2
    with pytest.raises(RankError, match="tuning: must be a path, None or False, got int"):
        run_ranks(lambda comm: Buffer(comm, tuning=3), 1, executor="emu")


def test_policies_are_those_of_the_largest_calls(path):
    save(path, HEADER, [replace(ENTRY, tokens=64, policy="ld_na"), ENTRY,
                        replace(ENTRY, op="combine_push", policy="ld_na")])
    assert load(path).policies() == {"dispatch": "bulk", "combine_push": "ld_na"}
