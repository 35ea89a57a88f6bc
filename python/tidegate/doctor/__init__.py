"""`tidegate doctor`: will this machine hold what the settings promise? Each answer comes with its cure.

Rule: readings are taken in one file, judged in another and shown in a third.
"""

from tidegate.doctor.checks import Check, judge
from tidegate.doctor.readings import Readings, read_machine
from tidegate.doctor.report import report

__all__ = ["Check", "Readings", "judge", "read_machine", "report"]
