"""The limit beside each figure: the table against the datasheets, and what is not known."""

from typing import Any

import pytest
from msgspec.structs import replace

from probe.measure import limits
from probe.measure.model import Gpu
from tests.measure import samples

PRODUCTS: list[dict[str, Any]] = limits.table()["product"]


def gpu_of(product: dict[str, Any]) -> Gpu:
    """As NVML and torch would describe it, at the clock that its datasheet is reckoned with."""
    return Gpu(
        "GPU-0",
        product["name"],
        sms=product["sms"],
        capability=product["capability"],
        max_sm_mhz=product["boost_mhz"],
        memory_bus_bits=product["memory"]["bits"],
        max_memory_mhz=product["memory"]["mhz"],
    )


@pytest.mark.parametrize("product", PRODUCTS, ids=[product["name"] for product in PRODUCTS])
def test_the_rates_come_to_what_the_datasheets_say(product: dict[str, Any]) -> None:
    gpu = gpu_of(product)
    for dtype, tflops in product["tflops"].items():
        assert limits.of_product(gpu, dtype).value == pytest.approx(tflops, rel=0.02), dtype
    assert limits.of_memory(gpu).value == pytest.approx(product["memory"]["gbps"], rel=0.03)


def test_the_table_has_the_hardware_that_the_readme_names() -> None:
    names = " ".join(product["name"] for product in PRODUCTS)
    wanted = ("A100", "H100 80GB HBM3", "H100 PCIe", "H200", "L40S", "A10", "T4", "V100", "B200")
    assert [] == [name for name in wanted if name not in names]


def test_every_row_names_its_source() -> None:
    rows = [*limits.table()["architecture"], *PRODUCTS, limits.table()["pcie"], limits.table()["nvlink"]]
    assert all(row["source"].startswith("https://") for row in rows)


def test_an_h100_at_its_rated_clock_does_989() -> None:
    at_rated = replace(samples.h100(), max_sm_mhz=1830)
    found = limits.of_product(at_rated, "bf16")
    assert found.value == pytest.approx(989.4, rel=0.001)
    assert found.source == "132 SMs x 1830 MHz x 4096 FLOP/clock; datasheet: 989.4 TFLOP/s at 1830 MHz"


def test_geforce_adds_in_fp32_at_half_the_rate() -> None:
    assert limits.rate_of("8.9", "NVIDIA GeForce RTX 4090", "bf16") == 512
    assert limits.rate_of("8.9", "NVIDIA L40S", "bf16") == 1024


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("Tesla T4", 1024),
        ("NVIDIA TITAN RTX", 1024),
        ("Quadro RTX 6000", 1024),
        ("NVIDIA GeForce RTX 2080 Ti", 512),
        ("NVIDIA GeForce GTX 1660 Ti", 256),
        ("NVIDIA GeForce MX450", 256),
    ],
)
def test_of_turing_only_some_have_the_whole_tensor_rate(name: str, rate: int) -> None:
    """GeForce RTX halves it where sums are kept in fp32; GTX 16 and MX have no tensor cores."""
    assert limits.rate_of("7.5", name, "fp16") == rate


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        ({"capability": "13.7"}, "bf16"),
        ({"capability": ""}, "bf16"),
        ({"capability": "7.0"}, "tf32"),
        ({"sms": None}, "bf16"),
    ],
)
def test_what_is_not_known_is_not_guessed(change: dict[str, Any], dtype: str) -> None:
    found = limits.of_product(replace(samples.h100(), **change), dtype)
    assert found.value is None
    assert found.source.startswith("unknown: ")


def test_the_memory_of_an_h100() -> None:
    found = limits.of_memory(samples.h100())
    assert found.value == pytest.approx(3352.32)
    assert found.source == "5120 bits x 2619 MHz x 2 / 8"


@pytest.mark.parametrize(
    ("generation", "width", "gbps"),
    [(3, 16, 15.76), (4, 16, 31.5), (5, 16, 63.0), (5, 8, 31.5), (9, 16, None), (None, 16, None)],
)
def test_the_link_to_the_host(generation: int | None, width: int, gbps: float | None) -> None:
    gpu = replace(samples.h100(), pcie_generation=generation, pcie_width=width)
    assert limits.of_host_link(gpu).value == (None if gbps is None else pytest.approx(gbps, rel=0.001))
    assert limits.of_host_link(gpu, ways=2).value == (None if gbps is None else pytest.approx(2 * gbps, rel=0.001))


def test_a_gpu_on_the_chip_to_chip_link_has_no_pcie_limit() -> None:
    assert limits.of_host_link(replace(samples.h100(), c2c=True)).value is None


@pytest.mark.parametrize(
    ("version", "mbps", "expected"),
    [(6, 26562, 25.0), (6, None, 25.0), (None, 26562, 26.562), (7, 53125, 50.0), (None, None, None), (6, 12500, 12.5)],
)
def test_a_link_carries_its_data_rate_or_what_it_runs_at(
    version: int | None, mbps: int | None, expected: float | None
) -> None:
    assert limits.link_gbps(version, mbps) == expected


def test_gpus_behind_switches_reach_each_other_over_all_their_links() -> None:
    gpus = [samples.h100(at) for at in range(3)]
    assert limits.between(gpus[0], gpus[1], gpus) == (450.0, "18 NVLinks x 25 GB/s")


def test_gpus_joined_directly_have_only_the_links_between_them() -> None:
    a, b, c = (samples.h100(at) for at in range(3))
    a = replace(a, nvlinks=6, nvlink_remotes=(b.bus_id,) * 4 + (c.bus_id,) * 2)
    b = replace(b, nvlinks=4, nvlink_remotes=(a.bus_id,) * 4)
    c = replace(c, nvlinks=2, nvlink_remotes=(a.bus_id,) * 2)
    assert limits.between(a, b, [a, b, c]).value == 100.0
    assert limits.between(a, c, [a, b, c]).value == 50.0
    assert limits.between(b, c, [a, b, c]).value is None


def test_without_nvlink_the_slower_pcie_link_bounds_a_pair() -> None:
    a = replace(samples.h100(0), nvlinks=0, nvlink_remotes=())
    b = replace(a, pcie_generation=4)
    assert limits.between(a, b, [a, b]).value == pytest.approx(31.5, rel=0.001)


def test_switches_that_add_raise_the_limit_of_the_all_reduce_alone() -> None:
    gpus = [samples.h100(at) for at in range(8)]
    assert limits.of_group(gpus, "all_gather").value == 450.0
    assert limits.of_group(gpus, "all_reduce").value == pytest.approx(450 * 2 * 7 / 8)
    older = [replace(gpu, capability="8.0") for gpu in gpus]
    assert limits.of_group(older, "all_reduce").value == 450.0


def test_a_mig_instance_and_a_cpu_have_no_limit_and_say_so() -> None:
    on_cpu = samples.run(0)
    assert {one.limit for one in on_cpu.results} == {None}
    mig = replace(samples.provenance(1), gpus=(replace(samples.h100(), uuid="MIG-1"),))
    result = replace(samples.run(1).results[-1], target="gpu:MIG-1")
    assert limits.with_limits([result], mig)[0].limit_source.startswith("unknown: a MIG instance")


def test_no_figure_of_a_healthy_host_is_over_its_limit() -> None:
    over = [one.case for one in samples.run(8).results if one.limit and one.median > one.limit]
    assert [] == over
