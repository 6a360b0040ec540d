# SPDX-License-Identifier: MIT
"""Which names of DeepEP are here, and which come later.

Consumers take the presence of a name for its feature: Megatron imports `HybridEPBuffer` and uses it
if that succeeds.  So a name whose feature is absent is absent, for `hasattr`, for `getattr` with a
default and for `import`, which all go by `AttributeError`.  Who uses it all the same reads why.
"""

# Of DeepEP, whose API this is; its own distribution of this version would be replaced by this one.
VERSION = "1.2.1+ptx"

LATER_IN_PACKAGE = {
    "ElasticBuffer": "DeepEP V2",
    "EPHandle": "DeepEP V2",
    "HybridEPBuffer": "DeepEP's hybrid-ep branch",
    "get_logical_domain_size": "DeepEP V2",
    "get_physical_domain_size": "DeepEP V2",
}

LATER_IN_BUFFER = {
    "internode_combine": "RDMA",
    "internode_dispatch": "RDMA",
}


class LaterError(NotImplementedError, AttributeError):
    """A name of DeepEP's that this release does not have yet.

    Both: to who asks whether the name is there it is not, to who uses it it is not implemented.
    """


def raise_missing(owner, name, later):
    """Raise what looking up `owner`.`name` raises; `later`: name -> feature."""
    if name in later:
        raise LaterError(f"{owner}.{name}: {later[name]} is not in this release of deepep_ptx, "
                         "which has DeepEP V1's normal and low-latency modes inside one NVLink "
                         "domain")
    raise AttributeError(f"{owner!r} has no attribute {name!r}")


def topk_idx_t():
    """torch's type of top-k indices, as DeepEP is built by default; torch is imported for it."""
    try:
        import torch
    except ImportError as error:
        raise AttributeError("topk_idx_t: is torch.int64, and torch cannot be imported: "
                             f"{error}") from error
    return torch.int64
