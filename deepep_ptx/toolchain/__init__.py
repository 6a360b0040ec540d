# SPDX-License-Identifier: MIT
"""From params.h, ptx/ and variants.toml to what the package ships and what the lock file records.

Pure Python, and nothing here imports the rest of the package: setup.py runs these modules before
the extensions exist.
"""
