"""Translating stored latents, file by file, in constant memory: see `translate_files`."""

from hf_relstitch.bulk.running import BulkResult, translate_files

__all__ = ["BulkResult", "translate_files"]
