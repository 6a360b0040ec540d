# SPDX-License-Identifier: MIT
"""What a check found."""

from dataclasses import dataclass

OK, WARNING, PROBLEM = STATUSES = ("ok", "warning", "problem")


@dataclass(frozen=True)
class Result:
    """One line of the report.

    check: what was looked at.  status: one of STATUSES; a problem stops what the package is for, a
    warning does not.  text: what was found.  fix: what to do, empty where nothing has to be done.
    """

    check: str
    status: str
    text: str
    fix: str = ""

    def __str__(self):
        return f"{self.text}; fix: {self.fix}" if self.fix else self.text
