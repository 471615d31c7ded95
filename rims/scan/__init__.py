"""How a whole sequence is computed: one function, whatever does the work behind it."""

from rims.scan.dispatch import scan as scan
from rims.scan.over import Over as Over
from rims.scan.over import is_recomputing as is_recomputing
from rims.scan.paths import scan_path as scan_path
from rims.scan.reference import ScanOutput as ScanOutput
from rims.scan.reversed import scan_reversed as scan_reversed

__all__ = ["Over", "ScanOutput", "is_recomputing", "scan", "scan_path", "scan_reversed"]
