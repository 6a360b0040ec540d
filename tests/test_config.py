# SPDX-License-Identifier: MIT
"""Config: DeepEP's checks and tables, and the exact size of an arena."""

import dataclasses
import pickle

import numpy as np
import pytest

from deepep_ptx import Config, config
from deepep_ptx.config import get_combine_config, get_dispatch_config, get_size_hint

FIELDS = ("num_sms", "num_max_nvl_chunked_send_tokens", "num_max_nvl_chunked_recv_tokens",
          "num_max_rdma_chunked_send_tokens", "num_max_rdma_chunked_recv_tokens")


def values(config):
    return tuple(getattr(config, name) for name in FIELDS)


# -- Config -----------------------------------------------------------------------------------

def test_defaults():
    assert values(Config()) == (20, 6, 256, 6, 258)       # 256 rounded up to a multiple of 6


def test_positional_and_keywords():
    by_name = dict(zip(FIELDS, (24, 8, 288, 32, 128), strict=True))
    assert values(Config(24, 8, 288, 32, 128)) == tuple(by_name.values())
    assert Config(**by_name) == Config(24, 8, 288, 32, 128)
    assert values(Config(np.int64(0), np.int32(1))) == (0, 1, 256, 6, 258)
    assert type(Config(np.int64(3)).num_sms) is int


@pytest.mark.parametrize(("send", "recv", "rounded"), [
    (6, 128, 132), (12, 128, 132), (20, 128, 140), (28, 128, 140), (8, 128, 128), (32, 128, 128),
    (1, 2, 2), (4, 5, 8), (127, 128, 254),
])
def test_rdma_recv_is_rounded_up(send, recv, rounded):
    made = Config(num_max_rdma_chunked_send_tokens=send, num_max_rdma_chunked_recv_tokens=recv)
    assert made.num_max_rdma_chunked_recv_tokens == rounded
    assert made.num_max_rdma_chunked_send_tokens == send <= rounded / 2


@pytest.mark.parametrize(("kwargs", "error", "text"), [
    ({"num_sms": -1}, ValueError, "num_sms: must be at least 0, got -1"),
    ({"num_sms": 20.0}, TypeError, "num_sms: must be an integer, got float"),
    ({"num_sms": True}, TypeError, "num_sms: must be an integer, got bool"),
    ({"num_sms": None}, TypeError, "num_sms: must be an integer, got NoneType"),
    *(({name: 0}, ValueError, f"{name}: must be at least 1, got 0") for name in FIELDS[1:]),
    *(({name: "6"}, TypeError, f"{name}: must be an integer, got str") for name in FIELDS[1:]),
    ({FIELDS[1]: 256}, ValueError, f"{FIELDS[1]}: must be at least 1 and below {FIELDS[2]} = 256"),
    ({FIELDS[2]: 6}, ValueError, f"{FIELDS[1]}: must be at least 1 and below {FIELDS[2]} = 6"),
    ({FIELDS[3]: 300}, ValueError, f"{FIELDS[3]}: must be at least 1 and below {FIELDS[4]} = 256"),
    ({FIELDS[4]: 6}, ValueError, f"{FIELDS[3]}: must be at least 1 and below {FIELDS[4]} = 6"),
])
def test_bad_values(kwargs, error, text):
    with pytest.raises(error) as caught:
        Config(**kwargs)
    assert str(caught.value).startswith(text)


def test_is_a_value():
    one, same, other = Config(24), Config(num_sms=24), Config(25)
    assert one == same and hash(one) == hash(same) and one != other
    assert one != (24, 6, 256, 6, 258)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == (
        "Config(num_sms=24, num_max_nvl_chunked_send_tokens=6, num_max_nvl_chunked_recv_tokens=256,"
        " num_max_rdma_chunked_send_tokens=6, num_max_rdma_chunked_recv_tokens=258)")
    assert eval(repr(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.num_sms = 3
    with pytest.raises(AttributeError):
        one.anything = 3


@pytest.mark.parametrize("method", ["get_nvl_buffer_size_hint", "get_rdma_buffer_size_hint"])
def test_size_hints_of_a_config(method):
    hint = getattr(Config(), method)
    assert [hint(14336, num_ranks) for num_ranks in (1, 2, 8, 64)] == [0] * 4
    for args, error, text in [
        ((0, 8), ValueError, "hidden_bytes: must be at least 1"),
        ((14336.0, 8), TypeError, "hidden_bytes: must be an integer"),
        ((14336, 0), ValueError, r"num_ranks: must be in \[1, 64\]"),
        ((14336, 65), ValueError, r"num_ranks: must be in \[1, 64\]"),
        ((14336, "8"), TypeError, "num_ranks: must be an integer"),
    ]:
        with pytest.raises(error, match=f"^{text}"):
            hint(*args)


# -- tables -----------------------------------------------------------------------------------

def test_recommended_values():
    assert values(get_dispatch_config(2)) == (20, 24, 256, 6, 132)
    assert values(get_dispatch_config(8, 24)) == (24, 6, 256, 6, 132)
    assert values(get_dispatch_config(24)) == (20, 8, 288, 32, 128)
    assert values(get_dispatch_config(64)) == (20, 20, 288, 28, 140)
    assert values(get_combine_config(8)) == (20, 4, 256, 6, 132)
    assert values(get_combine_config(64, num_sms=16)) == (16, 1, 288, 20, 140)
    assert values(get_combine_config(48)) == (20, 1, 288, 8, 128)


@pytest.mark.parametrize("function", [get_dispatch_config, get_combine_config])
def test_recommended_for_any_number_of_ranks(function):
    for num_ranks in (*range(1, 65), 96, 128, 144, 160):
        assert isinstance(function(num_ranks), Config)
    assert function(1) == function(2)
    assert function(5) == function(8)
    assert function(33) == function(48) == function(np.int64(48))
    for num_ranks, error in (0, ValueError), (65, ValueError), (161, ValueError), (8.0, TypeError):
        with pytest.raises(error, match="^num_ranks: "):
            function(num_ranks)
    with pytest.raises(ValueError, match="^num_sms: "):
        function(8, -1)


def test_tables_have_the_same_rows():
    assert list(config.DISPATCH_TOKENS) == sorted(config.COMBINE_TOKENS)


# -- the arena --------------------------------------------------------------------------------

def up(nbytes):
    return (nbytes + 127) // 128 * 128


def test_slot_bytes():
    assert config.slot_bytes(0, 7168, 8, 2, 0, 8) == 0
    assert config.slot_bytes(1, 8, 1, 2, 0, 4) == 4 * 128
    assert config.slot_bytes(1, 16, 0, 1, 1, 8) == 3 * 128
    assert config.slot_bytes(100, 7168, 8, 1, 56, 8) == (
        up(716800) + up(22400) + up(6400) + up(3200) + up(400))


def test_sizes_of_numpy_integers():
    """4.3 GB, which are 5.8 MB in 32 bits."""
    slot = config.slot_bytes(300000, 7168, 8, 2, 0, 8)
    assert slot > 1 << 32
    assert config.slot_bytes(np.int32(300000), np.int32(7168), np.int8(8), np.int8(2), np.int8(0),
                             np.uint8(8)) == slot
    assert (config.staging_bytes(np.int32(300000), np.int32(7168), np.int8(8), np.int8(8))
            == config.staging_bytes(300000, 7168, 8, 8) > 1 << 32)


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (2.0, TypeError), ("2", TypeError)])
def test_sizes_of_what_is_none(value, error):
    for name in ("num_rows", "hidden", "num_topk", "itemsize", "num_scales", "topk_idx_bytes",
                 "scale_itemsize"):
        with pytest.raises(error, match=f"^{name}: must be "):
            config.slot_bytes(**dict.fromkeys(("num_rows", "hidden", "num_topk", "itemsize",
                                               "num_scales", "topk_idx_bytes"), 1) | {name: value})
    for name in "num_tokens", "hidden", "num_topk", "num_ranks":
        with pytest.raises(error, match=f"^{name}: must be "):
            config.staging_bytes(**dict.fromkeys(("num_tokens", "hidden", "num_topk", "num_ranks"),
                                                 1) | {name: value})


def test_staging_bytes():
    assert config.staging_bytes(0, 7168, 8, 8) == 0
    assert config.staging_bytes(3, 24, 2, 8) == up(6 * 24 * 2) + 6 * 128
    assert config.staging_bytes(3, 24, 8, 2) == config.staging_bytes(3, 24, 2, 8)
    assert config.staging_bytes(3, 24, 0, 8) == config.staging_bytes(3, 24, 8, 8)


def test_size_hint():
    hint = get_size_hint(4096, 7168, 8, 2)
    assert hint == (2 * 4096 * 14336 + 2 * 4096 * 128           # staging
                    + 8192 * (14336 + 64 + 32 + 4))             # results
    assert hint % 128 == 0
    staging, slot = config.staging_bytes(5, 24, 3, 4), config.slot_bytes(20, 24, 3, 2, 0, 8)
    for live in 1, 2, 7:
        assert get_size_hint(5, 24, 3, 4, live_results=live) == staging + live * slot
    assert get_size_hint(0, 24, 3, 4) == 0
    fp8 = get_size_hint(5, 32, 3, 4, itemsize=1, num_scales=2, topk_idx_bytes=4)
    assert fp8 == config.staging_bytes(5, 32, 3, 4) + config.slot_bytes(20, 32, 3, 1, 2, 4)
    mxfp8 = get_size_hint(5, 32, 3, 4, itemsize=1, num_scales=9, scale_itemsize=1)
    assert mxfp8 == config.staging_bytes(5, 32, 3, 4) + config.slot_bytes(20, 32, 3, 1, 9, 8, 1)
    assert config.slot_bytes(20, 32, 0, 1, 9, 8, 1) == 640 + 256 + 128
    assert get_size_hint(5, 4, 3, 4, itemsize=4) == (
        config.staging_bytes(5, 4, 3, 4) + config.slot_bytes(20, 4, 3, 4, 0, 8))
    assert type(get_size_hint(np.int64(5), np.int64(24), 3, 4)) is int


@pytest.mark.parametrize(("kwargs", "error", "text"), [
    ({"num_tokens": -1}, ValueError, "num_tokens: must be in [0, 33554431]"),
    ({"num_tokens": 1 << 25}, ValueError, "num_tokens: must be in [0, 33554431]"),
    ({"num_tokens": 1.0}, TypeError, "num_tokens: must be an integer"),
    ({"hidden": 0}, ValueError, "hidden: must be in [1, 16777215]"),
    ({"hidden": 1 << 24}, ValueError, "hidden: must be in [1, 16777215]"),
    ({"hidden": 12}, ValueError, "hidden: must be a multiple of 8, got 12"),
    ({"hidden": 24, "itemsize": 1}, ValueError, "hidden: must be a multiple of 16, got 24"),
    ({"num_topk": -1}, ValueError, "num_topk: must be in [0, 32]"),
    ({"num_topk": 33}, ValueError, "num_topk: must be in [0, 32]"),
    ({"num_ranks": 0}, ValueError, "num_ranks: must be in [1, 64]"),
    ({"num_ranks": 65}, ValueError, "num_ranks: must be in [1, 64]"),
    ({"itemsize": 3}, ValueError, "itemsize: must be 1, 2, 4, 8 or 16, got 3"),
    ({"itemsize": 32}, ValueError, "itemsize: must be in [1, 16], got 32"),
    ({"hidden": 6, "itemsize": 4}, ValueError, "hidden: must be a multiple of 4, got 6"),
    ({"scale_itemsize": 3}, ValueError, "scale_itemsize: must be 1, 2 or 4, got 3"),
    ({"scale_itemsize": 8}, ValueError, "scale_itemsize: must be in [1, 4], got 8"),
    ({"num_scales": -1}, ValueError, "num_scales: must be in [0, 16777215]"),
    ({"topk_idx_bytes": 6}, ValueError, "topk_idx_bytes: must be 4 or 8, got 6"),
    ({"topk_idx_bytes": 2}, ValueError, "topk_idx_bytes: must be"),
    ({"live_results": 0}, ValueError, "live_results: must be at least 1"),
])
def test_size_hint_arguments(kwargs, error, text):
    good = {"num_tokens": 5, "hidden": 24, "num_topk": 3, "num_ranks": 4}
    with pytest.raises(error) as caught:
        get_size_hint(**{**good, **kwargs})
    assert str(caught.value).startswith(text), str(caught.value)
