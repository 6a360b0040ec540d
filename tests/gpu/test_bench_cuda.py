# SPDX-License-Identifier: MIT
"""`deepep-ptx bench` on GPUs: what its records hold, not what its times are."""

import json

import pytest

from deepep_ptx import cli
from deepep_ptx._cuda import device_count

pytestmark = pytest.mark.gpu

SMALL = ["--executor", "cuda", "--tokens", "1,64", "--hidden", "1024", "--experts", "16",
         "--topk", "4", "--rounds", "6", "--warmup", "1"]


def record_of(tmp_path, *options):
    path = tmp_path / "bench.json"
    assert cli.main(["bench", *options, "--out", str(path)]) == 0
    return json.loads(path.read_text())


def check(made, num_cases):
    assert made["machine"]["gpus"] and made["machine"]["cuda_driver"] >= 12040
    assert len(made["cases"]) == num_cases
    for case in made["cases"]:
        for spread in case["kernel"], case["call"]:
            assert 0 < spread["p10_us"] <= spread["median_us"] <= spread["p90_us"]
        assert case["late"].keys() == case["rounds_us"].keys() == {"kernel", "call"}
        assert case["host"]["median_us"] > 0
        assert (case["floor_us"] is None) == (not case["bytes"] or not case["bytes"]["wire"])


@pytest.mark.parametrize("layout", ["threads", "processes"])
def test_intranode(layout, two_gpus, tmp_path):
    if layout == "processes":
        pytest.importorskip("torch")
    made = record_of(tmp_path, "intranode", *SMALL, "--layout", layout, "--policy", "fast,bulk")
    check(made, 2 * (8 * 2 + 1))
    assert made["layout"] == layout and made["links"]["copy_engine_both_ways_gb_s"] > 0
    assert [peer["name"] for peer in made["peers"]] == (
        ["nccl", "deep_ep"] if layout == "processes" else [])


def test_ranks_that_share_a_gpu(tmp_path):
    made = record_of(tmp_path, "intranode", *SMALL, "--devices", "0,0", "--routing", "skewed,local")
    check(made, 9 * 2 * 2)
    assert made["layout"] == "threads" and made["links"] == {}


def test_overlap(tmp_path):
    pytest.importorskip("torch")
    ranks = str(device_count())
    made = record_of(tmp_path, "overlap", "--tokens", "256", "--ranks", ranks, "--experts", "64",
                     "--sms", "8", "--rounds", "6", "--gemm", "1024x1024x1024")
    assert len(made["pairs"]) == 2
    for pair in made["pairs"]:
        assert pair["comm_alone"]["median_us"] > 0 and pair["gemm_alone"]["median_us"] > 100


@pytest.mark.parametrize("layout", ["shared", "threads", "processes"])
def test_low_latency(layout, request, tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if layout != "shared":
        request.getfixturevalue("two_gpus")
    where = ["--devices", "0,0"] if layout == "shared" else ["--ranks", "2", "--layout", layout]
    made = record_of(tmp_path, "ll", *where, "--executor", "cuda", "--tokens", "1,40", "--hidden",
                     "1024", "--experts", "16", "--topk", "4", "--rounds", "6", "--warmup", "1")
    assert len(made["cases"]) == 2 * 2 * 2 * 3
    assert {case["what"] for case in made["cases"]} == {"pair", "dispatch", "combine"}
    for case in made["cases"]:
        assert case["compared"] and case["bytes"]["peers"] > 0
        for spread in case["graph"], case["eager"]:
            assert 0 < spread["p10_us"] <= spread["median_us"] <= spread["p90_us"]
        assert case["host"]["median_us"] > 0
        assert (case["floor_us"] is None) == (layout == "shared")
    assert set(made["low_latency_bytes"]) == {"exact", "rank"}
    assert [peer["name"] for peer in made["peers"]] == (["deep_ep"] if layout == "processes"
                                                        else [])


def test_too_many_sms_are_bad_input(tmp_path, capfd):
    assert cli.main(["bench", "intranode", *SMALL, "--sms", "1000"]) == 2
    assert "--sms: must be in [1, " in capfd.readouterr().err
