"""How a whole sequence is computed: one function, whatever does the work behind it."""

from rims.scan.backward import scan_backward as scan_backward
from rims.scan.reference import ScanOutput as ScanOutput
from rims.scan.reference import scan as scan

__all__ = ["ScanOutput", "scan", "scan_backward"]
