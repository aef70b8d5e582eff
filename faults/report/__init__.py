"""The report of chaos runs: ``report.html`` in a run's folder, ``index.html`` above the folders of several runs.

Each is one file that needs no network, made from what the folder holds and nothing else.
"""

from faults.report.writing import INDEX, REPORT, write_report

__all__ = ["INDEX", "REPORT", "write_report"]
