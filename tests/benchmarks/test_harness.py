import importlib.util
import json
from pathlib import Path

import pytest
import torch

from visionzoo.runs.memory import peak_bytes

FILE = Path(__file__).parents[2] / "benchmarks" / "harness.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("harness", FILE)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "harness", module)
        spec.loader.exec_module(module)
        yield module


def test_cases_take_turns_and_the_warm_up_is_not_timed(harness):
    calls = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = harness.interleave(cases, rounds=3, warmup=2)
    assert "".join(calls) == "ababababab"
    assert [len(t.wall) for t in timings.values()] == [len(t.cpu) for t in timings.values()] == [3, 3]


def test_summary_and_speedup_are_medians_with_quartiles(harness):
    timing = harness.Timing(wall=[1.0, 2.0, 3.0, 4.0, 50.0], cpu=[1.0] * 5)
    assert timing.summary()["wall"] == {"low": 2.0, "median": 3.0, "high": 4.0}
    # Rounds are compared one by one, so a round in which the machine was slow for both does not count.
    assert harness.speedup([1.0, 10.0, 2.0], [1.5, 15.0, 3.0])["median"] == 1.5
    assert harness.speedup([2.0], [3.0]) == {"low": 1.5, "median": 1.5, "high": 1.5}


def test_flops_count_products_and_attention(harness):
    a, b = torch.randn(4, 5), torch.randn(5, 6)
    assert harness.count_flops(lambda: a @ b) == 2 * 4 * 5 * 6
    q = torch.randn(1, 2, 7, 8)
    attention = harness.count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * (2 * 2 * 7 * 7 * 8)


def test_matmul_peak_is_a_speed(harness):
    assert harness.matmul_peak(torch.float32, size=64) > 1e6


def test_a_case_in_a_fresh_process_answers_with_its_last_line(harness, tmp_path):
    script = tmp_path / "case.py"
    script.write_text("import json, sys; print('noise'); print(json.dumps({'peak': int(sys.argv[1])}))")
    assert harness.in_fresh_process(str(script), "7") == {"peak": 7}
    script.write_text("raise SystemExit('no such model')")
    with pytest.raises(RuntimeError, match="no such model"):
        harness.in_fresh_process(str(script))


def test_table_is_aligned(harness):
    assert harness.table(["case", "s"], [["ours", "1.0"], ["transformers", "2.0"]]).splitlines() == [
        "case          s",
        "------------  ---",
        "ours          1.0",
        "transformers  2.0",
    ]


def test_a_row_that_runs_out_of_memory_says_so_and_other_errors_do_not_pass(harness, tmp_path):
    record = harness.Record("x", {"machine": harness.machine()}, str(tmp_path / "x.json"))

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken():
        raise RuntimeError("shapes do not fit")

    record.row("large", full)
    with pytest.raises(RuntimeError, match="do not fit"):
        record.row("wrong", broken)
    kept = json.loads((tmp_path / "x.json").read_text())["results"]
    assert kept == {"large": {"cases": {}, "absent": {"every case": "out of memory"}}}


def test_a_record_names_machine_and_versions_and_goes_on_where_it_was_interrupted(harness, tmp_path):
    facts = {"machine": harness.machine(packages=("transformers", "no-such-peer"))}
    assert facts["machine"]["cpu"]
    assert {"torch", "transformers", "visionzoo"} <= set(facts["machine"]["versions"])
    assert facts["machine"]["versions"]["no-such-peer"] == "not installed"
    out, measured = str(tmp_path / "x.json"), []

    def measure(value):
        measured.append(value)
        return {"cases": {"a": value}}

    harness.Record("x", facts, out).row("first", lambda: measure(1))  # and is interrupted
    again = harness.Record("x", facts, out)
    again.row("first", lambda: measure(2))
    again.row("second", lambda: measure(3))
    assert measured == [1, 3]
    other = harness.Record("x", {"machine": {**facts["machine"], "command": "another"}}, out)
    assert other.value["results"] == {}
    again.finish()
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {
        **json.loads(json.dumps(facts)),
        "results": {"first": {"cases": {"a": 1}}, "second": {"cases": {"a": 3}}},
    }
    assert harness.Record("x", facts, out).value["results"] == {}  # a finished one is measured anew
    assert peak_bytes() > 2**20


def test_a_record_does_not_say_where_it_was_written(harness, tmp_path: Path) -> None:
    facts = {"machine": {}, "arguments": {"out": "/here/a.json", "rounds": 3}, "out": "/here/a.json", "size": 96}
    value = harness.Record("x", facts, str(tmp_path / "a.json")).value
    assert value["arguments"] == {"rounds": 3}
    assert "/here" not in json.dumps(value)
    assert value["size"] == 96
