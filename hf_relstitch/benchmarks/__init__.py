"""Benchmarks: suites of encoders, heads, translations and anchors, run and reported."""

from hf_relstitch.benchmarks.hub_results import push_results
from hf_relstitch.benchmarks.report import Results, compare, write_report
from hf_relstitch.benchmarks.run import run_suite
from hf_relstitch.benchmarks.suite import Suite, load_suite

__all__ = ["Results", "Suite", "compare", "load_suite", "push_results", "run_suite", "write_report"]
