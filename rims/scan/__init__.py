"""A cell over a whole sequence: one function in front of all paths."""

from rims.native.eager import is_recomputing as is_recomputing
from rims.scan.paths import scan_path as scan_path
from rims.scan.reference import ScanOutput as ScanOutput
from rims.scan.scan import Over as Over
from rims.scan.scan import scan as scan
from rims.scan.scan import scan_reversed as scan_reversed

__all__ = ["Over", "ScanOutput", "is_recomputing", "scan", "scan_path", "scan_reversed"]
