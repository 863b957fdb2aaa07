"""Benchmarks: suites of encoders, heads, translations and anchors, run and reported."""

from hf_relstitch.benchmarks.reporting import compare, write_report
from hf_relstitch.benchmarks.running import run_suite
from hf_relstitch.benchmarks.stitched import push_results
from hf_relstitch.benchmarks.suite import Suite, load_suite

__all__ = ["Suite", "compare", "load_suite", "push_results", "run_suite", "write_report"]
