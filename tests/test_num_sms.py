# SPDX-License-Identifier: MIT
"""Who says how many CTAs a call has: the call, its config, set_num_sms, a file, the model."""

import threading

import numpy as np
import pytest

from deepep_ptx import Buffer, Config, RankError, buffer, run_ranks
from deepep_ptx.launch_choice import LaunchChoice
from deepep_ptx.select import choose
from deepep_ptx.sm_model import Work, choose_sms, ranks_per_token, rates_of
from deepep_ptx.tuning import Entry, Header, load, save
from tests.test_buffer_life import dispatch as dispatched
from tests.test_buffer_life import tokens

GPU = "CPU executor"
T, H, K, R = 24, 64, 2, 2
MODEL = choose_sms(Work("dispatch", 32, 2 * H, R, 1, ranks_per_token(R, K), "vec"), rates_of(GPU),
                   10**9)


def tuning_file(path, *entries):
    save(path, Header("0", GPU, R, 1, "2026-11-24", "none", 0, {}), entries)
    return path


def entry(op, sms, *, itemsize=2, tokens=32, row_bytes=2 * H, policy="ld_na", knobs=None):
    return Entry(op, itemsize, tokens, row_bytes, sms, policy, knobs or {}, 10.0)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Thread -> CTAs of the launches it asked for.  Nobody has called set_num_sms, and the user
    has no files."""
    monkeypatch.setattr(Buffer, "num_sms", buffer._NobodySet(20))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("DEEPEP_PTX_TUNING", raising=False)
    made = {}

    class Noted(buffer.Launcher):
        def launch(self, *arguments, **options):
            launch = super().launch(*arguments, **options)
            made.setdefault(threading.get_ident(), []).append(launch.num_sms)
            return launch

    monkeypatch.setattr(buffer, "Launcher", Noted)
    return made


def calls(comm, launched, arguments, options):
    """CTAs of a layout, a dispatch, a cached dispatch, and combines that pull and that push."""
    x, idx, weights = tokens(comm.rank, T, H, K)
    with Buffer(comm, **options) as ours:
        recv_x, _, _, _, handle, _ = dispatched(ours, x, idx, weights, **arguments)
        ours.dispatch(x, handle, **arguments)
        ours.combine(recv_x, handle, **arguments)
        ours.combine(recv_x.copy(), handle, **arguments)
        assert ours.last_num_sms == launched[threading.get_ident()][-1]
        return launched[threading.get_ident()]


def sms_of(launched, arguments=None, **options):
    """The same, alike on all ranks."""
    launched.clear()
    first, *others = run_ranks(calls, R, launched, arguments or {}, options, executor="emu")
    assert others == [first] * (R - 1)
    return first


# -- precedence -------------------------------------------------------------------------------

def test_the_model_chooses_where_nobody_says(launched):
    layout, dispatch, cached, pull, push = sms_of(launched)
    assert layout == 20
    assert dispatch == cached == MODEL
    kinds = [Work(op, 32, 2 * H, R, 1, ranks_per_token(R, K), path)
             for op, path in (("combine_pull", "bulk"), ("combine_push", "bulk"))]
    assert [pull, push] == [choose_sms(kind, rates_of(GPU), 10**9) for kind in kinds]


def test_each_of_them_gives_way_to_the_one_before(launched, tmp_path, monkeypatch):
    path = tuning_file(tmp_path / "t.json", entry("dispatch", 2), entry("combine_pull", 3),
                       entry("combine_push", 4))
    assert sms_of(launched, tuning=path) == [20, 2, 2, 3, 4]
    Buffer.set_num_sms(5)
    assert sms_of(launched, tuning=path) == [5] * 5
    config = Config(num_sms=7)
    assert sms_of(launched, {"config": config}, tuning=path) == [5, 7, 7, 7, 7]
    assert sms_of(launched, {"config": config, "num_sms": 9}, tuning=path) == [5, 9, 9, 9, 9]
    assert sms_of(launched, {"config": Config(num_sms=0)}, tuning=path) == [5] * 5


def test_a_class_that_the_file_has_not_takes_the_model(launched, tmp_path):
    path = tuning_file(tmp_path / "t.json", entry("dispatch", 2, tokens=64),
                       entry("dispatch", 2, row_bytes=4 * H), entry("dispatch", 2, itemsize=1),
                       entry("combine_push", 3))
    _, dispatch, cached, _, push = sms_of(launched, tuning=path)
    assert dispatch == cached == MODEL and push == 3


@pytest.mark.parametrize("num_sms", [1, 3, 20, 21])
def test_any_number(launched, num_sms):
    assert sms_of(launched, {"num_sms": num_sms})[1:] == [num_sms] * 4
    Buffer.set_num_sms(num_sms)
    assert sms_of(launched) == [num_sms] * 5


def test_num_sms_reads_20_until_somebody_sets_it(launched):
    assert Buffer.num_sms == 20
    assert Buffer.get_dispatch_config(2).num_sms == Buffer.get_combine_config(2).num_sms == 20
    Buffer.set_num_sms(20)
    assert Buffer.num_sms == 20 and sms_of(launched) == [20] * 5
    Buffer.num_sms = 6              # as consumers of DeepEP do it
    assert Buffer.get_dispatch_config(2).num_sms == 6 and sms_of(launched) == [6] * 5


def test_a_file_asks_for_no_more_than_fits(launched, tmp_path):
    path = tuning_file(tmp_path / "t.json", entry("dispatch", 10**6))
    limit = sms_of(launched, tuning=path)[1]
    assert MODEL < limit < 10**6
    with pytest.raises(RankError, match=rf"num_sms: must be in \[1, {limit}\], the CTAs per rank"):
        sms_of(launched, {"num_sms": limit + 1})


@pytest.mark.parametrize("num_sms, error, text", [
    (0, ValueError, "num_sms: must be at least 1, got 0"),
    (-3, ValueError, "num_sms: must be at least 1, got -3"),
    (True, TypeError, "num_sms: must be an integer, got bool"),
    (2.0, TypeError, "num_sms: must be an integer, got float"),
    ("2", TypeError, "num_sms: must be an integer, got str"),
    (10**9, ValueError, "num_sms: must be in [1, "),
])
def test_a_call_with_a_bad_number_launches_nothing(launched, num_sms, error, text):
    def main(comm):
        x, idx, weights = tokens(comm.rank, T, H, K)
        with Buffer(comm) as ours:
            recv_x, *_, handle, _ = dispatched(ours, x, idx, weights)
            before = ours.stats()
            for call, args in ((dispatched, (ours, x, idx, weights)), (ours.dispatch, (x, handle)),
                               (ours.combine, (recv_x, handle))):
                with pytest.raises(error) as caught:
                    call(*args, num_sms=num_sms)
                assert str(caught.value).startswith(text)
            assert ours.last_launch == ("ep_layout",) and ours.stats() == before
            del recv_x

    run_ranks(main, R, executor="emu")


def test_ranks_may_choose_differently():
    def main(comm):
        x, idx, weights = tokens(comm.rank, T, H, K)
        with Buffer(comm, tuning=False) as ours:
            got = []
            for mine in (3, 1 + 4 * comm.rank):
                recv_x, recv_idx, _, _, handle, _ = dispatched(ours, x, idx, weights, num_sms=mine)
                pulled = ours.combine(recv_x, handle, num_sms=mine)[0]
                pushed = ours.combine(recv_x.copy(), handle, num_sms=mine)[0]
                got.append([np.array(a).tobytes() for a in (recv_x, recv_idx, pulled, pushed)])
                del recv_x, recv_idx
            assert got[0] == got[1]

    run_ranks(main, 4, executor="emu")


# -- policies of a file -----------------------------------------------------------------------

def test_policies_of_a_file_where_nobody_asks_for_one(monkeypatch, tmp_path):
    path = tuning_file(tmp_path / "t.json", entry("dispatch", 2, policy="ld_volatile"),
                       entry("dispatch", 2, tokens=64, policy="bulk"),
                       entry("combine_push", 2, tokens=4096, policy="bulk"),
                       entry("combine_pull", 2, policy="ld_relaxed_sys"))
    for name in "DEEPEP_PTX_POLICY", "DISABLE_AGGRESSIVE_PTX_INSTRS":
        monkeypatch.delenv(name, raising=False)

    def symbols(policy=None):
        def main(comm):
            with Buffer(comm, tuning=path, policy=policy) as ours:
                return {kernel: variant["symbol"] for kernel, variant in ours.variants.items()}
        return run_ranks(main, R, executor="emu", arch="sm_90")[0]

    of_file = symbols()
    assert of_file["dispatch"] == "ep_dispatch_bulk"        # of the largest calls
    assert of_file["combine"] == "ep_combine_vec_ld_relaxed_sys"
    assert of_file["combine_push"] == "ep_combine_bulk"
    asked = {kernel: variant["symbol"] for kernel, variant in choose("ld_na", "sm_90").items()}
    assert symbols("ld_na") == asked
    monkeypatch.setenv("DEEPEP_PTX_POLICY", "ld_na")
    assert symbols() == asked


# -- cost -------------------------------------------------------------------------------------

def test_a_choice_is_made_once_per_class(monkeypatch, tmp_path):
    tuning = load(tuning_file(tmp_path / "t.json", entry("dispatch", 2, knobs={"stages": 4})))
    made = LaunchChoice(GPU, R, 1, 100, choose("fast", "sm_90"), tuning)
    first = made.of("dispatch", 2, 24, 2 * H, K)
    assert (first.sms, first.ring) == (2, (4, 0))
    assert made.of("dispatch", 2, 17, 2 * H, K) is made.of("dispatch", 2, 32, 2 * H, K) is first
    other = made.of("dispatch", 2, 33, 2 * H, K)
    assert other is not first and other.ring == (0, 0)
    monkeypatch.setattr("deepep_ptx.launch_choice.choose_sms", lambda *a: pytest.fail("again"))
    assert made.of("dispatch", 2, 64, 2 * H, K) is other
    assert made.of("dispatch", 2, 24, 2 * H, K) is first


def test_a_call_without_tokens_has_a_cta():
    made = LaunchChoice(GPU, R, 1, 100, choose("fast", "sm_90"))
    assert made.of("dispatch", 2, 0, 2 * H, K).sms >= 1
