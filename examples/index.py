"""Change the encoder of a vector index that is in use, without encoding its documents again.

A thousand documents are encoded with the new encoder, and pair it with the vectors that the index has of them. Then
either new queries are translated and the index stays as it is, or every vector of the index is translated into a new
table. Recall is what of the ten nearest documents of an index that is encoded anew is found, and how often the old
encoder found the same. Needs LanceDB: pip install 'hf-relstitch[lancedb]'. A Chroma server: `move_collection`.

    python examples/index.py
"""

import argparse

import lancedb
import pyarrow as pa
from datasets import load_dataset

from hf_relstitch import Encoder
from hf_relstitch.bulk import move_table, translation_between

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--old", default="sentence-transformers/all-MiniLM-L6-v2", help="the index's encoder")
parser.add_argument("--new", default="sentence-transformers/all-mpnet-base-v2", help="the encoder to change to")
parser.add_argument("--data", default="fancyzhx/ag_news", help="a data set with a column text")
parser.add_argument("--rows", type=int, default=5000, help="documents of the index")
parser.add_argument("--pairs", type=int, default=1000, help="documents to encode with the new encoder too")
parser.add_argument("--out", default="index", help="folder of the database")
options = parser.parse_args()

texts = load_dataset(options.data, split="train").shuffle(seed=0)["text"][: options.rows + 100]
texts, queries = texts[:-100], texts[-100:]
old, new = Encoder.from_pretrained(options.old), Encoder.from_pretrained(options.new)


def table(vectors):
    """Vectors with their texts, as the index that you have."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), vectors.shape[1])
    return pa.table({"text": texts, "vector": column})


def nearest(name, vectors):
    """The ten nearest texts of each query."""
    found = [db.open_table(name).search(one).distance_type("cosine").limit(10).to_list() for one in vectors.numpy()]
    return [{row["text"] for row in rows} for rows in found]


db = lancedb.connect(options.out)
db.create_table("documents", table(old.encode(texts)))

pairs = db.open_table("documents").search().select(["text", "vector"]).limit(options.pairs).to_list()
known = [row["vector"] for row in pairs]
fresh = new.encode([row["text"] for row in pairs])

to_old = translation_between(fresh, known, translates="queries")
asked = new.encode(queries)
answers = {"the old index, queries translated": nearest("documents", to_old(asked))}

to_new = translation_between(known, fresh, translates="documents")
told = to_new.report
print(f"expected: {told['recall']:.3f} of the nearest, by the old encoder {told['recall_untranslated']:.3f}")
move_table(to_new, db, "documents", "moved")
answers["the index moved"] = nearest("moved", asked)

answers["the old index, the old encoder"] = nearest("documents", old.encode(queries))
db.create_table("encoded-anew", table(new.encode(texts)))
best = nearest("encoded-anew", asked)
for way, found in answers.items():
    print(f"{way}: recall@10 {sum(len(a & b) for a, b in zip(found, best, strict=True)) / (10 * len(best)):.3f}")
