# SPDX-License-Identifier: MIT
"""Which variant each kernel gets."""

import pytest

from deepep_ptx import select
from deepep_ptx.buffer import _places


def row(kernel, path, policy, site, arch):
    return {"kernel": kernel, "path": path, "policy": policy, "site": site, "arch": arch,
            "symbol": "_".join(filter(None, ("ep", kernel, path, policy)))}


@pytest.fixture
def table():
    """Two archs, one kernel without policies, one per load site."""
    policies = ["ld_na", "ld_relaxed_sys", "ld_volatile", "ld_nc_na"]
    variants = []
    for arch in ("sm_80", "sm_90"):
        variants.append(row("layout", None, None, None, arch))
        for policy in policies:
            variants.append(row("dispatch", "vec", policy, "source", arch))
            variants.append(row("combine", "vec", policy, "peer", arch))
    return {
        "variants": variants,
        "policies": {policy: {"defined": ["source", "peer"]} for policy in policies[:3]}
        | {"ld_nc_na": {"defined": ["source"]}},
        "aliases": {
            "fast": {"policies": ["ld_nc_na", "ld_na"], "undefined": False},
            "safe": {"policies": ["ld_relaxed_sys", "ld_volatile"], "undefined": False},
            "aggressive": {"policies": ["ld_nc_na"], "undefined": True},
        },
        "uses": {"combine_push": "combine"},
        "paths": {"dispatch": ["vec"], "combine": ["vec"], "combine_push": ["vec"]},
    }


def policies_of(chosen):
    return {kernel: variant["policy"] for kernel, variant in chosen.items()}


@pytest.mark.parametrize(("policy", "dispatch", "combine"), [
    ("fast", "ld_nc_na", "ld_na"),          # the first is undefined at a peer site
    ("safe", "ld_relaxed_sys", "ld_relaxed_sys"),
    ("aggressive", "ld_nc_na", "ld_nc_na"),
    ("ld_volatile", "ld_volatile", "ld_volatile"),
    ("ld_nc_na", "ld_nc_na", "ld_nc_na"),   # asked for by name
    ("ep_combine_vec_ld_volatile", "ld_nc_na", "ld_volatile"),
])
def test_policy(table, policy, dispatch, combine):
    chosen = policies_of(select.choose(policy, "sm_90", table))
    assert chosen == {"layout": None, "dispatch": dispatch, "combine": combine,
                      "combine_push": combine}


@pytest.mark.parametrize("alias, form", [("fast", "ld_na"), ("safe", "ld_relaxed_sys"),
                                         ("aggressive", "ld_nc_na")])
def test_an_alias_of_load_forms_leaves_the_data_path_alone(table, alias, form):
    """All take the first that a use has there; the form is for a path that has forms."""
    table["variants"].append(row("combine", "bulk", None, "peer", "sm_90"))
    table["paths"]["combine"] = ["bulk", "vec"]
    chosen = select.choose(alias, "sm_90", table)
    assert chosen["combine"]["symbol"] == "ep_combine_bulk"
    assert chosen["combine_push"]["symbol"] == f"ep_combine_vec_{form}"
    assert select.choose(alias, "sm_80", table)["combine"]["symbol"] == f"ep_combine_vec_{form}"
    named = select.choose(form, "sm_90", table)              # a form by its own name takes its path
    assert named["combine"]["symbol"] == f"ep_combine_vec_{form}"


@pytest.mark.parametrize(("arch", "expected"), [
    ("sm_80", "sm_80"), ("sm_86", "sm_80"), ("sm_90", "sm_90"), ("sm_100a", "sm_90"),
])
def test_newest_arch_that_runs(table, arch, expected):
    chosen = select.choose("fast", arch, table)
    assert {variant["arch"] for variant in chosen.values()} == {expected}


def test_too_old_arch(table):
    with pytest.raises(ValueError, match=r"^arch: no variant of layout runs on sm_70"):
        select.choose("fast", "sm_70", table)


def test_unknown_policy_names_the_nearest(table):
    with pytest.raises(ValueError, match=r"^policy: unknown policy 'ld_volatil'; did you mean "
                                         r"ld_volatile"):
        select.choose("ld_volatil", "sm_90", table)


def test_alias_without_a_defined_variant(table):
    table["aliases"]["fast"]["policies"] = ["ld_nc_na"]
    with pytest.raises(ValueError, match=r"^policy: 'fast' has no defined variant of combine$"):
        select.choose("fast", "sm_90", table)


@pytest.mark.parametrize(("argument", "environ", "expected"), [
    (None, {}, "fast"),
    (None, {"DISABLE_AGGRESSIVE_PTX_INSTRS": "1"}, "safe"),
    (None, {"DISABLE_AGGRESSIVE_PTX_INSTRS": "0"}, "aggressive"),
    (None, {"DISABLE_AGGRESSIVE_PTX_INSTRS": "1", "DEEPEP_PTX_POLICY": "fast"}, "fast"),
    ("ld_na", {"DEEPEP_PTX_POLICY": "safe"}, "ld_na"),
])
def test_precedence(argument, environ, expected):
    assert select.requested_policy(argument, environ)[0] == expected


def test_bad_switch():
    with pytest.raises(ValueError, match=r"^DISABLE_AGGRESSIVE_PTX_INSTRS: must be 0 or 1"):
        select.requested_policy(None, {"DISABLE_AGGRESSIVE_PTX_INSTRS": "yes"})


def test_policy_must_be_a_string():
    with pytest.raises(TypeError, match=r"^policy: "):
        select.requested_policy(1, {})


def test_bad_environment_policy_is_named(table):
    name, origin = select.requested_policy(None, {"DEEPEP_PTX_POLICY": "quick"})
    with pytest.raises(ValueError, match=r"^DEEPEP_PTX_POLICY: unknown policy 'quick'"):
        select.choose(name, "sm_90", table, origin)


def test_shipped_aliases_differ_in_load_forms_alone():
    chosen = {alias: select.choose(alias, "sm_90") for alias in select.load_table()["aliases"]}
    paths = [{kernel: row["path"] for kernel, row in rows.items()} for rows in chosen.values()]
    assert paths == [{"layout": None, "dispatch": "vec", "combine": "bulk", "combine_push": "vec",
                      "ll_dispatch": None, "ll_combine": None, "copy": None, "abort": None,
                      "ll_dispatch_shrink": None, "ll_combine_shrink": None, "ll_mask": None,
                      "ll_logfmt_combine": None}] * 3
    assert chosen["aggressive"]["dispatch"]["policy"] == "ld_nc_na"
    assert chosen["safe"]["combine_push"]["policy"] == "ld_relaxed_sys"


@pytest.mark.parametrize("policy", ["fast", "safe", "aggressive"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_shipped_table(policy, arch):
    """Every kernel of the core has a variant, whose text is there and holds its entry."""
    from deepep_ptx._errors import KERNELS

    chosen = select.choose(policy, arch)
    assert chosen.keys() == KERNELS.keys()
    for variant in chosen.values():
        assert variant["symbol"] in select.read_text(variant)


def test_a_buffer_loads_the_kernels_of_its_calls():
    chosen = select.choose("fast", "sm_90")
    normal = {name for name in chosen if not name.startswith("ll_")}
    assert {"dispatch", "combine", "copy", "abort"} <= normal
    assert set(_places(chosen, False, False)) == normal
    plain = _places(chosen, True, False)
    assert set(plain) - normal == {"ll_dispatch", "ll_combine", "ll_logfmt_combine"}
    assert plain["ll_combine"]["symbol"] == "ep_ll_combine"
    masking = _places(chosen, True, True)
    assert set(masking) - normal == {"ll_dispatch", "ll_combine", "ll_mask"}
    assert masking["ll_combine"]["symbol"] == "ep_ll_combine_shrink"
