"""Translation of stored latents, files and vector indexes, in constant memory: see `translate_files`, `move_table`."""

from hf_relstitch.bulk.chroma_store import move_collection
from hf_relstitch.bulk.faiss_store import move_index, translate_index
from hf_relstitch.bulk.lancedb_store import move_table
from hf_relstitch.bulk.migration import check_moved, plan_migration, sample_index
from hf_relstitch.bulk.milvus_store import move_entities
from hf_relstitch.bulk.pgvector_store import move_rows
from hf_relstitch.bulk.qdrant_store import move_points
from hf_relstitch.bulk.reranking import Reranker, probe
from hf_relstitch.bulk.search import SearchTranslation, translation_between, translations_into
from hf_relstitch.bulk.thresholds import match_threshold
from hf_relstitch.bulk.translate import BulkResult, translate_files

__all__ = [
    "BulkResult",
    "Reranker",
    "SearchTranslation",
    "check_moved",
    "match_threshold",
    "move_collection",
    "move_entities",
    "move_index",
    "move_points",
    "move_rows",
    "move_table",
    "plan_migration",
    "probe",
    "sample_index",
    "translate_files",
    "translate_index",
    "translation_between",
    "translations_into",
]
