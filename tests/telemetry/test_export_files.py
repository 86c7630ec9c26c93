"""Files that pandas-like tools read: what was captured comes back, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.system.conftest import Stage
from tests.telemetry.fleet import Replica, port
from tests.telemetry.made import TRACE, block

pa = pytest.importorskip("pyarrow", reason="needs the extra: export")

from fulgurite.cli.export.columns import frame_table  # noqa: E402
from fulgurite.cli.export.stream import Part  # noqa: E402
from fulgurite.wire.channels import CHANNELS  # noqa: E402
from fulgurite.wire.frame import FrameBatch  # noqa: E402

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def collected() -> Iterator[tuple[Stage, str]]:
    """A collector with six requests of 8 tokens, of two replicas."""
    stage = Stage()
    address = f"127.0.0.1:{port()}"
    stage.fulgurite("collector", "--redis", "memory://", "--listen", address, "--history", "all").says(
        "listening on"
    )
    replicas = [Replica(address, name) for name in ("one", "two")]
    for at in range(3):
        for replica in replicas:
            replica.ask(f"q{at}", kind="aborted" if at == 2 else "finished")
    assert all(replica.exporter.flush(10.0) for replica in replicas)
    yield stage, address
    for replica in replicas:
        replica.exporter.close()
    stage.clear()


def export(collected: tuple[Stage, str], out: Path, *arguments: str) -> Path:
    stage, address = collected
    done = stage.fulgurite("export", "--collector", address, str(out), *arguments)
    assert done.wait() == 0, done.err
    return out


def test_parquet_is_read_by_pyarrow_with_every_channel(collected: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(export(collected, tmp_path / "frames.parquet"))
    assert table.num_rows == 48
    assert set(table.column("replica").to_pylist()) == {"shop/served/one", "shop/served/two"}
    row = next(row for row in table.to_pylist() if row["request_id"] == "q0" and row["position"] == 6)
    assert row["trace_id"] == TRACE
    assert row["phase"] == "decode"
    want = block(8).columns
    np.testing.assert_allclose(row["head_write"], want["head_write"][1], rtol=1e-3)
    np.testing.assert_allclose(row["logprob"], want["logprob"][1], rtol=1e-6)
    assert row["token_id"] is None, "ids were not switched on"
    assert row["head_contribution"] is None, "not captured is null, never zero"
    field = table.schema.field("head_write")
    assert field.metadata[b"unit"] == b"1"
    assert field.metadata[b"axes"] == b"L H"


def test_other_tools_read_it(collected: Any, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    path = export(collected, tmp_path / "frames.parquet")
    rows = duckdb.sql(
        f"select replica, count(*), max(list_max(ffn_write)) from '{path}' group by replica order by replica"
    ).fetchall()
    assert [row[:2] for row in rows] == [("shop/served/one", 24), ("shop/served/two", 24)]
    assert rows[0][2] == pytest.approx(block(8).columns["ffn_write"].max(), rel=1e-3)
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.read_parquet(path)
    assert frame.filter(polars.col("request_id") == "q1").height == 16
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert len(pandas.read_parquet(path)) == 48


def test_arrow_and_json_lines_have_the_same_rows(collected: Any, tmp_path: Path) -> None:
    with pa.ipc.open_file(export(collected, tmp_path / "frames.arrow")) as file:
        table = file.read_all()
    lines = [json.loads(line) for line in export(collected, tmp_path / "f.jsonl").read_text().splitlines()]
    assert len(lines) == table.num_rows == 48

    def key(row: Any) -> Any:
        return row["replica"], row["request_id"], row["position"]

    for got, want in zip(sorted(table.to_pylist(), key=key), sorted(lines, key=key), strict=True):
        assert got["logprob"] == pytest.approx(want["logprob"], rel=1e-5)
        np.testing.assert_allclose(got["head_write"], want["head_write"], rtol=1e-3)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
def test_aggregates_have_a_row_per_request(collected: Any, tmp_path: Path, ending: str) -> None:
    import pyarrow.parquet as pq

    path = export(collected, tmp_path / f"requests.{ending}", "--aggregates")
    if ending == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    elif ending == "parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        with pa.ipc.open_file(path) as file:
            rows = file.read_all().to_pylist()
    assert len(rows) == 6
    assert sorted(row["outcome"] for row in rows) == ["aborted"] * 2 + ["finished"] * 4
    assert {row["output_tokens"] for row in rows} == {8}
    assert {round(row["first_token_s"], 6) for row in rows} == {0.03}


def test_the_timeline_has_a_slice_per_token_within_its_request(collected: Any, tmp_path: Path) -> None:
    events = json.loads(export(collected, tmp_path / "t.json").read_text())["traceEvents"]
    tokens = [e for e in events if e.get("cat") == "token"]
    requests = {(e["pid"], e["tid"]): e for e in events if e.get("cat") == "request"}
    assert (len(tokens), len(requests)) == (48, 6)
    for token in tokens:
        around = requests[token["pid"], token["tid"]]
        assert token["ts"] >= around["ts"] - 1
        assert token["ts"] + token["dur"] <= around["ts"] + around["dur"] + 1
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        "shop/served/one (tiny)",
        "shop/served/two (tiny)",
    }


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["out.xyz"], 2, "say --format"),
        (["out.json", "--aggregates"], 2, "leave --aggregates out"),
        (["out.parquet", "--replica", "nobody"], 1, "nothing to export"),
        (["no/such/folder/out.parquet"], 1, "cannot write"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(
    collected: Any, tmp_path: Path, arguments: list[str], status: int, says: str
) -> None:
    stage, address = collected
    arguments = [str(tmp_path / arguments[0]), *arguments[1:]]
    done = stage.fulgurite("export", "--collector", address, *arguments)
    assert done.wait() == status
    assert says in done.err[-1]
    assert len(done.err) == 1
    assert not list(tmp_path.iterdir()), "no half of a file is left"


def test_every_channel_has_a_column() -> None:
    batch = FrameBatch(epoch_ms=1, first_sequence=1, blocks=(block(2),))
    table = frame_table(Part("d/s/i", "tiny", batch))
    names = {channel.name for channel in CHANNELS} - {"request_index"}
    assert names <= set(table.column_names)
    assert table.column("stream_sequence").to_pylist() == [1, 2]
