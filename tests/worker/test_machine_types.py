"""Which card serves which machine type, what an offer changes, and how a type that nobody has is refused."""

from __future__ import annotations

import pytest
from fal._offers import refusal

from gpu_worker.machine_types import Gpu, apply_offer, host_machine_types, machine_types_of, parse_offer
from scheduler.store.records import HostRecord


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "GPU-A100"),
        ("NVIDIA A100 80GB PCIe", "GPU-A100"),
        ("NVIDIA H100 80GB HBM3", "GPU-H100"),
        ("NVIDIA H100 NVL", "GPU-H100"),
        ("NVIDIA H200", "GPU-H200"),
        ("NVIDIA B200", "GPU-B200"),
        ("NVIDIA GB200", "GPU-B200"),
        ("NVIDIA L40S", "GPU-L40"),
        ("NVIDIA GeForce RTX 4090", "GPU-RTX4090"),
        ("NVIDIA GeForce RTX 5090", "GPU-RTX5090"),
        ("NVIDIA RTX A6000", "GPU-A6000"),
    ],
)
def test_a_card_serves_its_own_type_and_plain_gpu(product: str, expected: str) -> None:
    assert machine_types_of(product) == (expected, "GPU")


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA A800-SXM4-80GB",
        "NVIDIA H20",
        "NVIDIA GH200 480GB",
        "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla T4",
        "NVIDIA A10",
    ],
)
def test_a_relative_of_a_known_card_is_only_a_plain_gpu(product: str) -> None:
    assert machine_types_of(product) == ("GPU",)


def test_an_offer_counts_cards_and_hides_the_rest() -> None:
    gpus = [Gpu(0, "NVIDIA L40S", 46068), Gpu(1, "NVIDIA A100-SXM4-40GB", 40960), Gpu(2, "NVIDIA L40S", 46068)]

    offered = apply_offer(gpus, parse_offer("GPU-A100=1"))

    assert [(gpu.index, gpu.machine_types) for gpu in offered] == [(1, ("GPU-A100", "GPU"))]
    assert host_machine_types(offered) == ("GPU-A100", "GPU", "XS", "S", "M", "L", "XL")


def test_the_operators_word_counts_for_a_card_of_another_name() -> None:
    offered = apply_offer([Gpu(0, "NVIDIA A800-SXM4-80GB", 81920)], {"GPU-A100": 1})

    assert offered[0].machine_types == ("GPU-A100", "GPU")


def test_offering_more_cards_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 GPUs are offered but the driver shows 0"):
        apply_offer([], {"GPU-A100": 2})


@pytest.mark.parametrize("text", ["GPU-A100", "GPU-A100=", "A100=2", "M=1", "GPU-A100=1,GPU-A100=2", "GPU-A100=x"])
def test_an_unreadable_offer_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="offer"):
        parse_offer(text)


def host(*gpus: Gpu, cpu_fallback: bool = False, alive: bool = True) -> HostRecord:
    return HostRecord(
        host="h",
        machine_types=host_machine_types(gpus),
        gpus=tuple((gpu.index, gpu.name, gpu.memory_mb, gpu.machine_types) for gpu in gpus),
        cpu_fallback=cpu_fallback,
        cpus=2,
        memory_mb=4096,
        alive=alive,
    )


H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 81559, ("GPU-H100", "GPU"))


def test_a_gpu_type_on_a_cpu_host_is_refused_with_what_there_is_and_what_to_do() -> None:
    assert refusal(["GPU-A100"], [host()]) == (
        "No host offers GPU-A100. This host offers CPU types XS, S, M, L, XL. Next: run it on a machine with that GPU, "
        'choose machine_type = "M", or let the CPU stand in (slow) with --cpu-fallback.'
    )


def test_a_refusal_names_the_gpus_that_do_exist() -> None:
    text = refusal(["GPU-A100", "GPU-B200"], [host(H100), host()]) or ""

    assert text.startswith("No host offers GPU-A100 or GPU-B200. The 2 hosts offer GPU-H100 (1 GPU at most)")
    assert 'choose machine_type = "GPU-H100"' in text


def test_nothing_is_refused_that_one_host_can_serve() -> None:
    assert refusal(["M"], [host()]) is None
    assert refusal(["GPU-A100", "GPU-H100"], [host(H100)]) is None
    assert refusal(["GPU"], [host(H100)]) is None
    assert refusal(["GPU-A100"], [host(cpu_fallback=True)]) is None


def test_more_gpus_than_any_host_has_are_refused() -> None:
    text = refusal(["GPU-H100"], [host(H100)], 2) or ""

    assert "No host offers 2 x GPU-H100. This host offers GPU-H100 (1 GPU)" in text


def test_a_misspelt_type_is_refused_even_where_the_cpu_stands_in() -> None:
    unknown = refusal(["MM"], [host(cpu_fallback=True)]) or ""
    misspelt = refusal(["GPU-A10O"], [host(cpu_fallback=True)]) or ""

    assert unknown.startswith("No host offers MM.")
    assert "--cpu-fallback" not in unknown
    assert 'did you mean "GPU-A100"' in misspelt


def test_a_dead_host_offers_nothing() -> None:
    assert "no host is connected" in (refusal(["M"], [host(alive=False)]) or "")
