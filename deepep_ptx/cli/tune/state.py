# SPDX-License-Identifier: MIT
"""The finished cases of a run, in a file, so that an interrupted run can go on."""

import json

from deepep_ptx.documents import check_fields, read_json
from deepep_ptx.tuning import write_whole


class State:
    """path: of the file, which is written after each case.  finished: name of a case -> what
    `decide` made of it."""

    def __init__(self, path, plan, finished):
        self.path = path
        self.finished = finished
        self._plan = plan

    @classmethod
    def begin(cls, path, plan, resume):
        """Of a run of `plan`.  resume: go on with what the file has.

        Raises:
            ValueError: there is a file and nobody asks to resume; or none, and somebody does; or
                it is of another plan.
        """
        document = plan.document()
        if not path.exists():
            if resume:
                raise ValueError(f"--resume: there is no {path}, nothing was interrupted")
            return cls(path, document, {})
        finished = cls._read(path, document)
        if not resume:
            raise ValueError(f"--resume: must be given, or {path} removed: it has "
                             f"{len(finished)} finished cases of a run that was interrupted")
        return cls(path, document, finished)

    @staticmethod
    def _read(path, plan):
        try:
            document = read_json(path)
            check_fields(document, {"plan": dict, "finished": dict}, "the file")
        except (OSError, ValueError) as error:
            raise ValueError(f"--resume: {path} is no state of a run ({error}); remove it") \
                from error
        was, finished = document["plan"], document["finished"]
        for name, value in plan.items():
            if was.get(name) != value:
                raise ValueError(f"--resume: {path} is of another plan: its {name} is "
                                 f"{was.get(name)!r}, this one's {value!r}")
        return finished

    def add(self, case, result):
        """A finished case."""
        self.finished[str(case)] = result
        write_whole(self.path, json.dumps({"plan": self._plan, "finished": self.finished}) + "\n")

    def remove(self):
        """The run is done."""
        self.path.unlink(missing_ok=True)
