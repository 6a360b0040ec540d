# SPDX-License-Identifier: MIT
"""`deepep-ptx ab` on GPUs: what its record holds, not what its times are."""

import json

import numpy as np
import pytest

from deepep_ptx import cli
from deepep_ptx._cuda import device_count

pytestmark = pytest.mark.gpu

KERNELS = {
    "dispatch": ("ld_na,bulk", []),
    "combine": ("bulk,ld_na", []),
    "combine, pushed": ("bulk,ld_nc_na", ["--combine", "push"]),
}
SMALL = ["--tokens", "64", "--hidden", "2048", "--rounds", "6", "--warmup", "1"]


def record_of(tmp_path, kernel, policies, *options):
    path = tmp_path / "ab.json"
    code = cli.main(["ab", kernel.partition(",")[0], "--policy", policies, "--executor", "cuda",
                     "--json", str(path), *SMALL, *options])
    assert code == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("kernel", KERNELS)
def test_record(kernel, tmp_path, capsys):
    policies, options = KERNELS[kernel]
    made = record_of(tmp_path, kernel, policies, *options)
    ranks = max(2, device_count())
    assert made["gpu"] and made["driver"] != "unknown" and not made["wrong"]
    assert [v["name"] for v in made["variants"]] == policies.split(",")
    for variant, figures in zip(made["variants"], made["figures"], strict=True):
        times = np.array(variant["times_us"])
        assert times.shape == (6, ranks) and (times > 0).all()
        assert variant["symbol"] in variant["launched"]
        assert figures["p10_us"] <= figures["median_us"] <= figures["p90_us"]
    ratio = made["figures"][1]["ratio"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert made["verdicts"] and made["verdicts"][0] in capsys.readouterr().out
    assert (made["floor_us"] is not None) == (device_count() > 1)
    assert bool(made["links"]) == (device_count() > 1)


def test_ranks_that_share_a_gpu(tmp_path):
    made = record_of(tmp_path, "dispatch", "fast,safe", "--devices", "0,0")
    assert made["links"] == {} and made["floor_us"] is None
    assert made["bytes"]["wire_busiest_gpu"] == 0 < made["bytes"]["logical_busiest_rank"]


def test_links_of_two_gpus(tmp_path, two_gpus):
    made = record_of(tmp_path, "dispatch", "fast,bulk", "--devices", "1,0")
    assert set(made["links"]) == {"copy_engine_one_way_gb_s", "copy_engine_both_ways_gb_s"}
    assert made["floor_us"] > 0
