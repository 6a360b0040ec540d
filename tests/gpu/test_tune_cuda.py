# SPDX-License-Identifier: MIT
"""`deepep-ptx tune` on GPUs: what its file holds, and that buffers take it."""

import pytest

from deepep_ptx import Buffer, cli, run_ranks
from deepep_ptx._cuda import device_count
from deepep_ptx.tuning import load
from tests.test_buffer_life import check_round

pytestmark = pytest.mark.gpu

SMALL = ["--tokens", "64", "--hidden", "2048", "--sms", "2,8", "--policies", "fast,bulk",
         "--rounds", "10"]


@pytest.mark.parametrize("devices", [None, "0,0"])
def test_a_file_that_buffers_take(tmp_path, devices, capsys):
    if not devices and device_count() < 2:
        pytest.skip("on one GPU the same as with 0,0")
    path = tmp_path / "t.json"
    options = ["--devices", devices] if devices else []
    assert cli.main(["tune", *SMALL, "--out", str(path), *options]) == 0
    assert "wrote" in capsys.readouterr().out and not path.with_name("t.json.state").exists()
    made = load(path)
    assert {key[0] for key in made.entries} == {"dispatch", "combine_pull", "combine_push"}
    assert all(entry.sms in (2, 8) and entry.median_us > 0 for entry in made.entries.values())

    def main(comm):
        with Buffer(comm, tuning=path) as buffer:
            return buffer.tuning.header

    ranks = 2 if devices else device_count()
    assert run_ranks(main, ranks, executor="cuda",
                     devices=[0, 0] if devices else None) == [made.header] * ranks


def test_calls_with_any_number_of_sms(two_gpus):
    def main(comm, num_sms):
        Buffer.set_num_sms(num_sms)
        with Buffer(comm) as buffer:
            check_round(buffer, comm.size)

    before = Buffer.num_sms
    try:
        for num_sms in (1, 3, 7, 20, 33):
            run_ranks(main, 2, num_sms, executor="cuda")
    finally:
        Buffer.num_sms = before
