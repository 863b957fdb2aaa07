"""A PostgreSQL table with a pgvector column moved to another encoder's space, in a real server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import torch
from pgvector.psycopg import register_vector
from vectors import D_NEW, D_OLD, NEW, OLD, ROWS, randn, stopped

from hf_relstitch import StitchError
from hf_relstitch.bulk import SearchTranslation, move_rows, translation_between

OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}


@pytest.fixture
def db(postgres_address: str) -> Iterator[Any]:
    with psycopg.connect(postgres_address, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE EXTENSION vector")
        register_vector(connection)
        yield connection


def filled(db: Any, kind: str = "vector", table: str = "docs") -> None:
    db.execute(
        f"CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL, "
        f"words int GENERATED ALWAYS AS (length(body)) STORED, embedding {kind}({D_OLD}))"
    )
    with db.cursor() as cursor:
        values = [(f"text {row}", OLD[row].numpy()) for row in range(ROWS)]
        cursor.executemany(f"INSERT INTO {table} (body, embedding) VALUES (%s, %s)", values)


def everything(db: Any, table: str) -> list[Any]:
    rows = db.execute(f'SELECT id, body, words, embedding FROM "{table}" ORDER BY id').fetchall()
    return [(*others, None if vector is None else vector.to_list()) for *others, vector in rows]


def indexes(db: Any, table: str) -> list[str]:
    found = db.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s ORDER BY indexname", [table]).fetchall()
    return sorted(each.split(f"public.{table} USING ")[1] for (each,) in found)


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("metric", OPERATORS)
def test_a_table_is_moved_with_all_that_is_in_it(metric: Any, kind: str, db: Any) -> None:
    made = translation_between(OLD, NEW, metric=metric)
    filled(db, kind)
    db.execute("COMMENT ON TABLE docs IS 'of alice'; COMMENT ON COLUMN docs.body IS 'what was encoded'")
    before = everything(db, "docs")
    assert move_rows(made, db, "docs", "moved", batch_size=70, progress=False) == ROWS
    after = everything(db, "moved")
    assert [row[:3] for row in after] == [row[:3] for row in before]
    true = made(torch.tensor([row[3] for row in before]))
    assert torch.allclose(torch.tensor([row[3] for row in after]), true, atol=1e-4 if kind == "vector" else 2e-2)
    assert everything(db, "docs") == before
    comment = db.execute("SELECT obj_description('moved'::regclass)").fetchone()[0].splitlines()
    assert comment[0] == "of alice"
    assert comment[1].startswith('hf_relstitch embedding: {"column": "embedding", "columns": {"embedding": "')
    assert db.execute("SELECT col_description('moved'::regclass, 2)").fetchone() == ("what was encoded",)
    query = f"SELECT id FROM moved ORDER BY embedding {OPERATORS[metric]} %s LIMIT 1"
    found = [db.execute(query, (NEW[row].numpy(),)).fetchone()[0] for row in range(0, ROWS, 10)]
    assert metric == "ip" or sum(row == 10 * place + 1 for place, row in enumerate(found)) > 24
    db.execute("INSERT INTO moved (body) VALUES ('the next')")
    assert db.execute("SELECT max(id) FROM moved").fetchone() == (ROWS + 1,)


def test_indexes_and_constraints_are_made_again(
    made: SearchTranslation, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    filled(db)
    db.execute(
        f"""
        CREATE INDEX ON docs USING hnsw (embedding vector_l2_ops) WITH (m=8, ef_construction=40) WHERE body <> '{{%}}';
        CREATE INDEX ON docs USING ivfflat ((embedding::halfvec({D_OLD})) halfvec_cosine_ops) WITH (lists=4);
        CREATE INDEX "a USING b" ON docs USING hnsw ((binary_quantize(embedding)::bit({D_OLD})) bit_hamming_ops);
        CREATE UNIQUE INDEX ON docs (lower(body));
        CREATE TABLE owners (id int PRIMARY KEY, best bigint REFERENCES docs);
        ALTER TABLE docs ADD owner int REFERENCES owners, ADD old halfvec({D_OLD}), ADD "100%" int DEFAULT 7,
            ADD CHECK (id > 0), ADD UNIQUE (body, owner);
        CREATE INDEX ON docs USING hnsw (old halfvec_ip_ops);
        CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER touch BEFORE UPDATE ON docs EXECUTE FUNCTION nothing();
        GRANT SELECT ON docs TO PUBLIC;
        """
    )
    move_rows(made, db, "docs", "moved", progress=False)
    wanted = [
        each.replace(f"halfvec({D_OLD}", f"halfvec({D_NEW}").replace(f"bit({D_OLD}", f"bit({D_NEW}")
        for each in indexes(db, "docs")
    ]
    assert indexes(db, "moved") == wanted
    constraints = (
        "SELECT contype, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass ORDER BY 1, 2"
    )
    assert db.execute(constraints, ["moved"]).fetchall() == db.execute(constraints, ["docs"]).fetchall()
    assert db.execute('SELECT DISTINCT "100%" FROM moved').fetchall() == [(7,)]
    assert (
        "column embedding of docs is searched by l2, and the translation was chosen and reported for cosine"
        in caplog.text
    )
    assert (
        "moved does not get all that docs has; it lacks: trigger touch, privileges, foreign key owners_best_fk"
        in caplog.text
    )
    db.execute("SET enable_seqscan = off")
    plan = db.execute("EXPLAIN SELECT id FROM moved WHERE body <> '{%%}' ORDER BY embedding <-> %s", [NEW[0].numpy()])
    assert "Index Scan using moved_embedding" in str(plan.fetchall())


def test_null_vectors_and_zeros_stay(made: SearchTranslation, db: Any) -> None:
    filled(db)
    db.execute("UPDATE docs SET embedding = NULL WHERE id = 3")
    db.execute("UPDATE docs SET embedding = %s WHERE id = 5", [np.zeros(D_OLD, np.float32)])
    assert move_rows(made, db, "docs", "moved", batch_size=70, progress=False) == ROWS
    after = everything(db, "moved")
    assert (after[2][3], after[4][3]) == (None, [0.0] * D_NEW)
    assert [row[0] for row in after] == list(range(1, ROWS + 1))


def test_a_move_that_was_stopped_leaves_nothing(made: SearchTranslation, postgres_address: str, db: Any) -> None:
    filled(db)
    with stopped(made, at=3):
        move_rows(made, postgres_address, "docs", "moved", batch_size=70, progress=False)
    assert db.execute("SELECT to_regclass('moved')").fetchone() == (None,)
    assert move_rows(made, postgres_address, "docs", "moved", batch_size=70, progress=False) == ROWS
    with pytest.raises(StitchError, match="there is a table moved already"):
        move_rows(made, postgres_address, "docs", "moved", progress=False)


def test_rows_that_are_written_meanwhile_are_not_moved(made: SearchTranslation, postgres_address: str, db: Any) -> None:
    filled(db)

    def write(*_: Any) -> None:
        db.execute("UPDATE docs SET body = body || ' anew'")
        db.execute("DELETE FROM docs WHERE id < 20")

    before, hook = everything(db, "docs"), made.register_forward_pre_hook(write)
    assert move_rows(made, postgres_address, "docs", "moved", batch_size=70, progress=False) == ROWS
    hook.remove()
    assert [row[:3] for row in everything(db, "moved")] == [row[:3] for row in before]


def test_what_cannot_be_moved_is_refused(made: SearchTranslation, postgres_address: str, db: Any) -> None:
    filled(db)
    square = translation_between(OLD, OLD @ torch.linalg.qr(randn(D_OLD, D_OLD))[0])
    how: Any = {"progress": False}
    move_rows(square, db, "public.docs", 'a "moved" %s', **how)
    with pytest.raises(StitchError, match='column embedding of a "moved" %s was translated by this model already'):
        move_rows(square, db, 'a "moved" %s', "again", **how)
    with pytest.raises(StitchError, match="there is no table nothing: give the name of a table"):
        move_rows(square, db, "nothing", "again", **how)
    with pytest.raises(StitchError, match="has no column 'body' of type vector or halfvec: say column=, one of embedd"):
        move_rows(square, db, "docs", "again", column="body", **how)
    for name in ("docs", 'a "moved" %s'):
        with pytest.raises(StitchError, match=f"there is a table {name} already"):
            move_rows(square, db, "docs", name, **how)
    for name in ("", " ", "..", "a.b", "x" * 64, "a\0b"):
        with pytest.raises(StitchError, match="cannot name a table"):
            move_rows(square, db, "docs", name, **how)
    db.execute("CREATE TABLE narrow (embedding vector(3)); CREATE VIEW seen AS SELECT * FROM docs")
    with pytest.raises(StitchError, match=r"column embedding of narrow is 3 wide and the model translates .* width 12"):
        move_rows(made, db, "narrow", "again", **how)
    with pytest.raises(StitchError, match="seen is a view, foreign or partitioned"):
        move_rows(made, db, "seen", "again", **how)
    db.execute("CREATE TABLE ragged (embedding vector); INSERT INTO ragged VALUES ('[1,2]')")
    with pytest.raises(StitchError, match=r"table ragged, from its row with the ctid \(0,1\) on: .* is 2 wide"):
        move_rows(made, db, "ragged", "again", **how)
    with db.transaction(), pytest.raises(StitchError, match="the connection is in a transaction"):
        move_rows(made, db, "docs", "again", **how)
    with pytest.raises(StitchError, match=r"the move was stopped \(connection .*\): mend that, and run it again"):
        move_rows(made, "postgresql://nobody@127.0.0.1:1/none", "docs", "again", **how)
    assert db.execute("SELECT count(*) FROM pg_class WHERE relname IN ('again')").fetchone() == (0,)


def test_rows_that_a_policy_hides_are_not_left_out_in_silence(made: SearchTranslation, db: Any) -> None:
    filled(db)
    db.execute(
        """
        CREATE ROLE reader; GRANT ALL ON SCHEMA public TO reader; GRANT SELECT ON docs TO reader;
        ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON docs USING (id < 9); SET ROLE reader;
        """
    )
    assert db.execute("SELECT count(*) FROM docs").fetchone() == (8,)
    with pytest.raises(StitchError, match=r"the move was stopped .*row-level security"):
        move_rows(made, db, "docs", "moved", progress=False)
    db.execute("RESET ROLE; DROP OWNED BY reader; DROP ROLE reader")


def test_what_the_new_width_does_not_allow_is_found_out_first(postgres_address: str, db: Any) -> None:
    wide = translation_between(OLD[:80], OLD[:80] @ randn(D_OLD, 2100, seed=4))
    filled(db)
    db.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")
    calls: list[Any] = []
    hook = wide.register_forward_pre_hook(lambda *given: calls.append(given))
    with pytest.raises(StitchError, match=r"the move was stopped .*2000 dimensions"):
        move_rows(wide, postgres_address, "docs", "moved", progress=False)
    hook.remove()
    assert not calls
