# SPDX-License-Identifier: MIT
"""From params.h, ptx/ and variants.toml to what the package ships and what the lock file records.

Nothing here imports extension modules, nor any of the package that does: setup.py runs these
modules before the extensions exist.  Of the package there are `emu`'s front end, which decodes what
has been rendered, and `errors`.
"""
