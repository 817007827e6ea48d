"""What runs in the children: it finds what is wrong, plans within its share, and reckons as nccl-tests does."""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import probe.measure
from probe.measure import machine

PROGRAMS = Path(probe.measure.__file__).parent / "programs"


def load(name: str) -> ModuleType:
    return load_path(str(PROGRAMS / f"{name}.py"))


def load_path(path: str) -> ModuleType:
    """As a child does."""
    spec = importlib.util.spec_from_file_location(f"bench_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


method, matmul, memory, collective, host, peer = map(load, ("method", "matmul", "memory", "collective", "host", "peer"))
CPU = method.Device("cpu")


def part(seconds: float) -> Any:
    """Of a share that is one case's alone."""
    return method.Clock(seconds).part(1)


class Listener:
    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.load: Callable[[str], Any] = load_path

    def step(self, name: str, target: str = "") -> None: ...

    def say(self, key: str, target: str = "", **data: Any) -> None:
        self.said.append({"key": key, "target": target, **data})

    def of(self, key: str) -> list[dict[str, Any]]:
        return [one for one in self.said if one["key"] == key]


# ---- matrix products -------------------------------------------------------------------------------------------------


def product(kind: Any, size: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    left, right = matmul.inputs(size, kind, CPU), matmul.inputs(size, kind, CPU)
    return left, right, torch.mm(left, right)


KINDS = [kind for kind in matmul.KINDS if kind.name != "tf32"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_right_product_is_right(kind: Any) -> None:
    assert matmul.compare(*product(kind), None, kind) == ""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_wrong_word_among_the_sampled_is_found(kind: Any) -> None:
    """256 of 300 rows and columns are sampled: a wrong row cannot be missed, a wrong word can; hence the next test."""
    left, right, result = product(kind)
    result[:, 5] *= 1.05
    result[5, :] *= 1.05
    assert "are not the product" in matmul.compare(left, right, result, None, kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_one_flipped_bit_anywhere_is_found_against_the_result_before(kind: Any) -> None:
    left, right, result = product(kind)
    before = result.clone()
    word = torch.int16 if result.element_size() == 2 else torch.int32
    result.view(word)[123, 45] ^= 1
    assert matmul.compare(left, right, result, before, kind) == "1 words differ from what the same call gave before"


def timed_with(monkeypatch: pytest.MonkeyPatch, mm: Callable[..., Any]) -> dict[str, Any]:
    """What is said of a product with four sets of buffers, where this is torch.mm."""
    listener = Listener()
    monkeypatch.setattr(method, "sets_beyond_cache", lambda device, size: 4)
    monkeypatch.setattr(torch, "mm", mm)
    matmul.one(listener, "", method, CPU, KINDS[-1], 64, part(10.0))
    (result,) = listener.of("result")
    assert result["data"]["buffers"] == 4
    return dict(result)


def test_every_set_of_buffers_that_was_timed_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of four is wrong, and not the first."""
    real, outs = torch.mm, list[int]()

    def mm(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> None:
        real(left, right, out=out)
        if out.data_ptr() not in outs:
            outs.append(out.data_ptr())
        if outs.index(out.data_ptr()) == 2:
            out.mul_(1.01)

    assert "are not the product" in timed_with(monkeypatch, mm)["text"]
    assert timed_with(monkeypatch, real)["text"] == ""


def test_a_product_that_the_timing_left_undone_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one from before the timing does not stand for it."""
    real, calls = torch.mm, list[int]()

    def mm(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) <= 6:  # two to see how long it takes, four before
            real(left, right, out=out)

    assert timed_with(monkeypatch, mm)["verified"] is False


def test_a_result_of_nothing_is_wrong() -> None:
    left, right, result = product(matmul.KINDS[3])
    assert matmul.compare(left, right, torch.full_like(result, float("nan")), None, matmul.KINDS[3])
    assert matmul.compare(left, right, torch.zeros_like(result), None, matmul.KINDS[3])


@pytest.mark.parametrize("kind", matmul.KINDS, ids=lambda kind: kind.name)
def test_inputs_are_random_in_every_bit_and_never_zero(kind: Any) -> None:
    made = matmul.inputs(256, kind, CPU)
    assert made.dtype == kind.dtype
    assert int(torch.count_nonzero(made)) == made.numel()
    magnitudes = made.double().abs()
    assert 1 <= float(magnitudes.min())
    assert float(magnitudes.max()) <= 2
    assert 0.45 < float((made > 0).double().mean()) < 0.55
    fraction = (magnitudes - 1) * 2 ** (kind.input_bits - 1)
    if kind.input_bits < 24:
        assert torch.equal(fraction, fraction.round())
        assert 0.4 < float((fraction.long() & 1).double().mean()) < 0.6


def test_a_product_that_would_take_seconds_is_left_out_by_what_the_smaller_took() -> None:
    assert matmul.too_slow((512, 0.1), 1024, 0.5)
    assert not matmul.too_slow((512, 0.01), 1024, 0.5)
    assert not matmul.too_slow(None, 1024, 0.5)


def test_a_product_slower_than_its_smaller_ones_promised_costs_two_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share holds its five samples, not what is around them."""
    clock = Ticking(monkeypatch)
    made: list[int] = []

    def slow(*_: Any, **__: Any) -> None:
        made.append(1)
        clock.now += 1.0

    monkeypatch.setattr(torch, "mm", slow)
    with pytest.raises(method.NoTime):
        matmul.one(Listener(), "", method, CPU, KINDS[-1], 64, method.Part(10.0, clock.now + 10.5))
    assert len(made) == 2


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_every_word_of_a_copy_is_known_and_a_wrong_one_is_found() -> None:
    words = method.Words(seed=1)
    made = torch.empty(method.BLOCK_WORDS * 2 + 77, dtype=torch.int64)
    words.fill(made)
    assert words.wrong(made) == 0
    made[-1] ^= 1
    made[3] ^= 1 << 62
    assert words.wrong(made) == 2


def test_no_two_repetitions_are_alike_and_none_is_zero() -> None:
    made = torch.empty(method.BLOCK_WORDS * 2, dtype=torch.int64)
    method.Words(seed=1).fill(made)
    assert not torch.equal(made[: method.BLOCK_WORDS], made[method.BLOCK_WORDS :])
    assert int(torch.count_nonzero(made)) == made.numel()


def test_a_copy_that_does_nothing_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other, **options: self)
    memory.one(listener, "", method, CPU, method.Words(1), "copy", 1 << 20, part(0.5))
    (result,) = listener.of("result")
    assert result["verified"] is False
    assert result["text"].endswith("words differ")


def test_buffers_take_turns_beyond_the_cache() -> None:
    assert method.sets_beyond_cache(CPU, 1 << 20) * (1 << 20) >= min(2 * CPU.cache_bytes(), 64 << 20)
    assert method.sets_beyond_cache(CPU, 1 << 40) == 1


class Pair:
    """Two workers' group, and the one of them that is not here: what it sends is `arrives`, what it tells is `told`."""

    def __init__(self, told: str = "0", arrives: int = 0) -> None:
        self.heard: dict[str, str] = {}
        self._told, self._arrives = told, arrives

    def load(self, path: str) -> "Pair":
        return self

    def join(self, child: Any, job: dict[str, Any]) -> "Pair":
        return self

    def agree(self, key: str, choose: Callable[[], int]) -> int:
        return int(method.FEWEST)

    def tell(self, key: str, word: str) -> None:
        self.heard[key] = word

    def told(self, key: str) -> str:
        return self._told

    wait = told

    def recv(self, into: torch.Tensor, source: int) -> None:
        if into.dtype == torch.int64:
            method.Words(seed=1).fill(into)
            into[: self._arrives] ^= 1

    def leave(self) -> None: ...


def between_workers(monkeypatch: pytest.MonkeyPatch, rank: int, pair: Pair) -> Listener:
    listener = Listener()
    listener.load = pair.load
    monkeypatch.setitem(peer.SIZES, "cpu", 1 << 20)
    monkeypatch.setattr(torch.distributed, "send", lambda tensor, to: None)
    monkeypatch.setattr(torch.distributed, "recv", pair.recv)
    peer.between_workers(listener, {"rank": rank, "world": 2, "share_s": 5.0, "seed": 1, "group": ""}, method)
    return listener


@pytest.mark.parametrize("wrong", [0, 3])
def test_who_receives_from_another_worker_counts_the_words_that_differ(
    monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    pair = Pair(arrives=wrong)
    between_workers(monkeypatch, 1, pair)
    assert pair.heard == {"wrong 0 to 1": str(wrong), "checked 0 to 1": "1"}


@pytest.mark.parametrize(("told", "verified", "text"), [("0", True, ""), ("3", False, "3 words differ")])
def test_who_sent_says_what_the_other_found(
    monkeypatch: pytest.MonkeyPatch, told: str, verified: bool, text: str
) -> None:
    (result,) = between_workers(monkeypatch, 0, Pair(told)).of("result")
    assert (result["case"], result["verified"], result["text"]) == ("0 to 1", verified, text)
    assert len(result["seconds"]) == method.FEWEST


@pytest.mark.parametrize(("part", "expected"), [("3", {3}), ("0-3", {0, 1, 2, 3})])
def test_cpu_lists_of_the_kernel(part: str, expected: set[int]) -> None:
    assert set(host.range_of(part)) == expected


def test_cpus_are_told_by_their_node_where_some_are_ours(tmp_path: Path) -> None:
    for name, cpus in (("node0", "0-1,8-9"), ("node1", "2-3"), ("node2", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(f"{cpus}\n")
    assert host.nodes_of({0, 2, 3, 9}, str(tmp_path)) == [{0, 9}, {2, 3}]
    assert host.nodes_of({0, 1}, str(tmp_path)) == [{0, 1}]
    assert host.nodes_of({0}, str(tmp_path / "none")) == []


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """Ours, as it was before the test."""
    ours = os.sched_getaffinity(0)
    yield ours
    os.sched_setaffinity(0, ours)


def test_a_process_stays_on_the_node_whose_memory_is_read_fastest(affinity: set[int]) -> None:
    """Each node is tried from its own CPUs."""
    nodes = [{cpu} for cpu in sorted(affinity)]
    if len(nodes) < 2:
        pytest.skip("one CPU")
    fastest = nodes[-2]
    assert host.move_to_fastest(nodes, lambda: float(os.sched_getaffinity(0) == fastest)) == str(min(fastest))
    assert os.sched_getaffinity(0) == fastest


@pytest.mark.parametrize("name", host.WAYS)
@pytest.mark.parametrize("parts", [1, 4])
def test_copies_take_turns_over_all_of_the_memory_and_words_land_where_they_are_compared(name: str, parts: int) -> None:
    """Without a GPU: the same calls between buffers that are not pinned."""
    words = method.Words(1)
    sent, there, back, received = (torch.full((1024,), -1, dtype=torch.int64) for _ in range(4))
    words.fill(sent)
    words.fill(back)
    call, landed = host.directions(host.Way(name, 8 * 1024 // parts), (sent, there), (back, received), None)
    for at in range(parts):
        assert any(words.wrong(buffer) for buffer in landed)
        call(at)
    assert [words.wrong(buffer) for buffer in landed] == [0] * len(landed)
    assert len(landed) == (2 if name == "both at once" else 1)


# ---- what a container may take --------------------------------------------------------------------------------------


def cgroup(folder: Path, own: str, **files: str) -> tuple[str, str]:
    """Cgroups as the kernel shows them: files by path, with `__` for a slash and `DOT` for a dot."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/")
        path = path.with_name(path.name.replace("DOT", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder / "groups"), str(folder / "own")


def test_memory_is_what_the_tightest_cgroup_leaves(tmp_path: Path) -> None:
    """The one above is tighter than our own; page cache is no use."""
    where = cgroup(
        tmp_path,
        "0::/a/b\n",
        a__memoryDOTmax="1000\n",
        a__memoryDOTcurrent="700\n",
        a__memoryDOTstat="anon 500\ninactive_file 200\n",
        a__b__memoryDOTmax="5000\n",
        a__b__memoryDOTcurrent="600\n",
        a__b__memoryDOTstat="inactive_file 0\n",
    )
    assert method.cgroup_free_bytes(*where) == 500


def test_memory_of_the_older_cgroups_and_of_none(tmp_path: Path) -> None:
    where = cgroup(
        tmp_path,
        "5:cpu,cpuacct:/x\n4:memory:/x\n",
        memory__memoryDOTlimit_in_bytes="900",
        memory__memoryDOTusage_in_bytes="950",
        memory__memoryDOTstat="total_inactive_file 250",
    )
    assert method.cgroup_free_bytes(*where) == 200
    assert method.cgroup_free_bytes(str(tmp_path / "none"), where[1]) == float("inf")
    assert method.cgroup_free_bytes(where[0], str(tmp_path / "none")) == float("inf")


def test_a_cpu_device_has_no_more_than_its_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "cgroup_free_bytes", lambda: 1000.0)
    assert CPU.free_bytes() == 500


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a__cpuDOTmax": "150000 100000\n", "a__b__cpuDOTmax": "max 100000\n"}, 1.5),
        ("0::/a\n", {"cpuDOTmax": "max 100000\n"}, float("inf")),
        ("2:cpu,cpuacct:/a\n", {"cpu__cpuDOTcfs_quota_us": "50000", "cpu__cpuDOTcfs_period_us": "100000"}, 0.5),
        ("2:cpu:/a\n", {"cpu__cpuDOTcfs_quota_us": "-1", "cpu__cpuDOTcfs_period_us": "100000"}, float("inf")),
        ("", {}, float("inf")),
    ],
)
def test_cpus_are_those_of_the_quota(tmp_path: Path, own: str, files: dict[str, str], expected: float) -> None:
    assert machine.cpu_quota(*cgroup(tmp_path, own, **files)) == expected


def test_cores_are_no_more_than_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    assert machine.cores() == 2
    monkeypatch.setattr(machine, "cpu_quota", lambda: float("inf"))
    assert machine.cores() == 4


# ---- the method ------------------------------------------------------------------------------------------------------


def test_a_case_that_does_not_fit_its_part_is_no_time() -> None:
    def slow(_: int) -> None:
        torch.randn(600, 600).inverse()

    with pytest.raises(method.NoTime):
        method.seconds_of(slow, CPU, part(1e-6))


def test_patience_is_no_longer_than_what_is_left_of_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of others have made room, but only where there is some."""
    clock = Ticking(monkeypatch)

    def call(_: int) -> None:
        clock.now += 0.1

    started = clock.now
    assert len(method.seconds_of(call, CPU, method.Part(0.2, clock.now + 10.0))) == method.FEWEST
    clock.now = started
    with pytest.raises(method.NoTime):
        method.seconds_of(call, CPU, method.Part(0.2, clock.now + 0.6))


def test_samples_are_whole_and_as_many_as_fit() -> None:
    buffer = torch.zeros(1000)
    seconds = method.seconds_of(lambda at: buffer.add_(1), CPU, part(0.1), lead_s=0.01)
    assert method.FEWEST <= len(seconds) <= method.MOST
    assert all(0 < one < 0.1 for one in seconds)


def test_every_buffer_has_its_turn_in_the_least_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are verified afterwards, and one that no call touched would look wrong."""
    clock = Ticking(monkeypatch)
    seen: set[int] = set()

    def call(at: int) -> None:
        seen.add(at % 300)
        clock.now += 0.001

    method.seconds_of(call, CPU, method.Part(0.01, clock.now + 10.0), turns=300)
    assert seen == set(range(300))


def test_the_lead_in_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is slow only while the clocks rise is slow in no sample."""
    clock = Ticking(monkeypatch)
    calls: list[int] = []

    def call(at: int) -> None:
        calls.append(at)
        clock.now += 1.0 if at < 3 else 0.5

    assert method.by_clock(method.Work(call), 2, 3, 2) == [0.5, 0.5, 0.5]
    assert calls == list(range(10))


class Ticking:
    """Time that passes only when a case says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(method.time, "perf_counter", lambda: self.now)


def in_turn(monkeypatch: pytest.MonkeyPatch, share_s: float, **takes_s: float) -> tuple[list[str], Listener]:
    """Which case was tried in which pass, with so much time for all and cases that take so long."""
    clock, listener, order = Ticking(monkeypatch), Listener(), list[str]()

    def case(name: str, seconds: float) -> Callable[[Any, int], None]:
        def measure(part: Any, number: int) -> None:
            order.append(f"{name}{number}")
            if seconds > part.most_s():
                raise method.NoTime
            clock.now += seconds

        return measure

    method.in_turn(listener, "", method.Clock(share_s), {name: case(name, each) for name, each in takes_s.items()})
    return order, listener


def test_cases_are_measured_in_passes_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No case a second time before every one was measured; at the end what still fits twice."""
    order, listener = in_turn(monkeypatch, 9.0, a=2.0, b=1.0, c=0.5)
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "b2", "c2"]
    assert listener.said == []


def test_a_long_time_ends_after_so_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    order, _ = in_turn(monkeypatch, 1000.0, a=1.0)
    assert len(order) == method.MOST_PASSES


def test_a_case_without_time_is_left_out_once_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    order, listener = in_turn(monkeypatch, 4.0, a=1.0, b=50.0)
    assert order == ["a0", "b0", "a1", "a2"]
    assert [(one["case"], one["text"]) for one in listener.of("left")] == [("b", "no time")]


def test_a_defect_in_a_case_is_no_lack_of_memory() -> None:
    def broken(part: Any, number: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        method.in_turn(Listener(), "", method.Clock(1.0), {"a": broken})


def test_the_host_of_a_program_sees_cases_that_had_no_time() -> None:
    listener = Listener()
    matmul.main(listener, {"target": "", "device": "cpu", "share_s": 0.0, "threads": 1}, method)
    assert {one["text"] for one in listener.of("left")} == {"no time"}
    assert listener.of("result") == []


# ---- collectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "expected"),
    [("all_reduce", 1.75), ("all_gather", 0.875), ("reduce_scatter", 0.875), ("all_to_all", 0.875), ("broadcast", 1.0)],
)
def test_bus_bandwidth_is_that_of_nccl_tests_for_eight_ranks(op: str, expected: float) -> None:
    """nccl-tests, doc/PERFORMANCE.md."""
    assert next(one for one in collective.OPS if one.name == op).factor(8) == expected


def test_sizes_are_from_1_kib_to_4_gib() -> None:
    assert min(collective.SIZES["cuda"]) == 1 << 10
    assert max(collective.SIZES["cuda"]) == 4 << 30
    assert len(set(collective.SIZES["cuda"])) == 12


class OneRank:
    """A rank of two, whose partner is played by the test."""

    rank, world = 1, 2


def case(op: str, size: int = 4096) -> Any:
    found = next(one for one in collective.OPS if one.name == op)
    made = collective.Case(Listener(), method, CPU, OneRank(), found, size, collective.Plan(1))
    made._sent = torch.empty(made.op.sent(made.words, 2))
    made._got = torch.empty(made.op.received(made.words, 2))
    made._fill()
    return made


def patterns(made: Any) -> list[torch.Tensor]:
    """What each rank contributes, whole."""
    whole = [torch.empty(made.words) for _ in range(2)]
    for rank, one in enumerate(whole):
        collective.repeat(made._pattern(rank, torch.device("cpu")), one)
    return whole


RIGHT: dict[str, Callable[[Any], torch.Tensor]] = {
    "all_reduce": lambda made: patterns(made)[0] + patterns(made)[1],
    "all_gather": lambda made: torch.cat([one[: made.words // 2] for one in patterns(made)]),
    "reduce_scatter": lambda made: (patterns(made)[0] + patterns(made)[1])[made.words // 2 :],
    "all_to_all": lambda made: torch.cat([one[made.words // 2 :] for one in patterns(made)]),
    "broadcast": lambda made: patterns(made)[0],
}


@pytest.mark.parametrize(("share_s", "expected"), [(3.0, 3), (0.0, 0)])
def test_collectives_come_in_passes_and_without_time_in_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share_s: float, expected: int
) -> None:
    """One rank, by gloo, with so much time that every case has three."""
    listener = Listener()
    monkeypatch.setitem(collective.SIZES, "cpu", (1024,))
    place = {"rank": 0, "world": 1, "store": str(tmp_path / "store"), "limit_s": 30.0}
    job = {"device": "cpu", "share_s": share_s, "group": str(PROGRAMS / "group.py"), **place}
    try:
        collective.main(listener, job, method)
    finally:
        torch.distributed.destroy_process_group()
    counts = Counter(result["case"] for result in listener.of("result"))
    assert {count for count in counts.values() if count < expected} == set(), counts
    assert len(counts) == (len(collective.OPS) if expected else 0)
    assert bool(listener.of("left")) is not bool(expected)


@pytest.mark.parametrize("op", RIGHT)
@pytest.mark.parametrize("size", [4096, 4 * (collective.PERIOD * 2 + 10)])
def test_every_word_of_a_collective_is_verified(op: str, size: int) -> None:
    made = case(op, size)
    assert made._wrong() > 0, "before the call nothing may look right"
    made._got.copy_(RIGHT[op](made))
    assert made._wrong() == 0
    made._got[-1] += 1
    assert made._wrong() == 1
    made._got.copy_(RIGHT[op](made))
    made._fill()
    assert made._wrong() > 0, "what an earlier call left behind is no result"
