"""What a machine reports of itself: no driver is no error, and a simulated set goes the same way as a real one."""

from __future__ import annotations

import pytest

from gpu_worker.inventory import gpu_source, local_host, nvml_gpus, simulated_gpus
from gpu_worker.settings import AgentSettings

SERVER = {"KEEPWARM_REDIS_URL": "redis://127.0.0.1:6379/0"}


def test_a_machine_without_a_driver_offers_its_cpu_types() -> None:
    host = local_host(gpu_source=lambda: ())

    assert host.machine_types == ("XS", "S", "M", "L", "XL")
    assert host.gpus == ()
    assert host.cpus >= 1
    assert host.memory_mb > 0


def test_asking_the_driver_never_raises() -> None:
    assert all(gpu.name and gpu.memory_mb > 0 for gpu in nvml_gpus())


def test_simulated_cards_are_offered_like_real_ones() -> None:
    source = gpu_source({"KEEPWARM_SIMULATED_GPUS": "NVIDIA A100-SXM4-40GB:40960=2, NVIDIA L40S=1"})

    host = local_host(gpu_source=source, offer="GPU-A100=1,GPU-L40=1", host_id="box")

    assert host.host == "box"
    assert host.machine_types[:3] == ("GPU-A100", "GPU", "GPU-L40")
    assert [(index, types) for index, _, _, types in host.gpus] == [(0, ("GPU-A100", "GPU")), (2, ("GPU-L40", "GPU"))]


def test_unreadable_simulated_cards_are_an_error() -> None:
    with pytest.raises(ValueError, match="simulated"):
        simulated_gpus("NVIDIA A100")


def test_a_host_says_how_many_cores_and_how_much_memory_it_gives_out() -> None:
    given = AgentSettings.from_env(SERVER | {"KEEPWARM_CPU_OVERCOMMIT": "0.5", "KEEPWARM_MEMORY_OVERCOMMIT": "0"})
    host = local_host(
        gpu_source=lambda: (), cpu_overcommit=given.cpu_overcommit, memory_overcommit=given.memory_overcommit
    )
    assert host.room_cores == host.cpus / 2
    assert host.room_mb == 0


@pytest.mark.parametrize("text", ["two", "-1", "1e3", "nan", "1,5", "2x"])
def test_a_factor_that_is_none_is_an_error_that_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"KEEPWARM_CPU_OVERCOMMIT='.*' is no factor; write for example 8, or 0"):
        AgentSettings.from_env(SERVER | {"KEEPWARM_CPU_OVERCOMMIT": text})
