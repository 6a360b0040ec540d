# SPDX-License-Identifier: MIT
"""The machine as the checks see it."""

import functools
from pathlib import Path

from deepep_ptx.cli.doctor import child

_LIMIT_S = 60


class Machine:
    """environ: environment variables.  root: folder that stands for `/`.  ask: as `child.ask`."""

    def __init__(self, environ, root="/", ask=child.ask):
        self.environ = environ
        self.root = Path(root)
        self.ask = ask

    @functools.cached_property
    def driver(self):
        """What `probe.gpus` says; where it cannot say anything, no GPUs, and `broken`."""
        try:
            return {"broken": False, **self.ask("gpus", limit_s=_LIMIT_S)}
        except child.ChildError as error:
            return {"broken": True, "version": None, "why": str(error), "gpus": [], "links": []}

    @property
    def gpus(self):
        """A document for each GPU: name, arch, memory."""
        return self.driver["gpus"]

    @property
    def gpu_nodes(self):
        """Names of the device files of NVIDIA GPUs, whatever the driver says."""
        return sorted(path.name for path in self.root.glob("dev/nvidia[0-9]*"))
