# SPDX-License-Identifier: MIT
"""Arena memory that torch's caching allocator is lent: what arrays/torch_memory.py needs in C."""

from libc.stdint cimport uint64_t

cdef extern from "lending/lending.h" nogil:
    void ep_lend_offer(uint64_t address, uint64_t bytes)
    void ep_lend_offer_nothing(uint64_t address)
    bint ep_lend_returned(uint64_t address)

# Names of the allocator's functions in this module's file.
ALLOC = "ep_lend_alloc"
FREE = "ep_lend_free"


def offer(uint64_t address, uint64_t nbytes):
    """What the next segment shall be that torch asks for in this thread."""
    ep_lend_offer(address, nbytes)


def offer_nothing(uint64_t address):
    """The same with an address where no memory is: who gets it asked for what is not free."""
    ep_lend_offer_nothing(address)


def withdraw():
    """Nothing is offered any more."""
    ep_lend_offer(0, 0)


def returned(uint64_t address):
    """Whether the segment that was lent at `address` has come back, told once."""
    return ep_lend_returned(address)
