"""GPUs by the names that drivers report, for the placement of tables and for the peak that a rate is compared with."""

import pytest

from rankmixer_dist.cost.gpu import GPU_KEYS, gpu_of_device, gpu_of_key, nearest_gpu
from rankmixer_dist.cost.memory import dense_state_bytes
from rankmixer_dist.cost.peak import peak_flops

NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-SXM4-80GB MIG 3g.40gb": "a100",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA A800-SXM4-80GB": "a800",
    "NVIDIA A800 40GB Active": "a100-pcie-40",
    "NVIDIA A30": "a30",
    "NVIDIA A40": "a40",
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H800 PCIe": "h100-pcie",
    "NVIDIA H800": "h800",
    "NVIDIA H20": "h20",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA GH200 144G HBM3e": "gh200-144",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_driver_s_name(name):
    found = gpu_of_device(name)
    assert found is not None and found.key == NAMES[name]
    assert found == gpu_of_key(NAMES[name].upper())
    assert peak_flops(name, "fp32") == found.fp32
    assert found.link_bandwidth < found.memory_bandwidth


@pytest.mark.parametrize(
    ("name", "gibibytes"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.39),
        ("NVIDIA A100-SXM4-80GB", 79.15),
        ("NVIDIA H100 80GB HBM3", 79.10),
        ("NVIDIA A40", 44.35),
        ("NVIDIA L40", 44.40),
        ("NVIDIA L40S", 44.39),
        ("NVIDIA A10G", 21.98),
        ("NVIDIA L4", 21.95),
    ],
)
def test_a_whole_gpu_has_what_the_table_says_and_little_more(name, gibibytes):
    """By what torch tells of such GPUs, so that a plan for GPUs that are not there is the one for those that are."""
    assert 0.9 * gibibytes * 2**30 < gpu_of_device(name).memory_bytes <= gibibytes * 2**30


def test_all_keys_are_reached_by_a_name():
    assert set(NAMES.values()) == set(GPU_KEYS)
    assert len(GPU_KEYS) == len(set(GPU_KEYS))


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA H1000", "NVIDIA A1000", "AMD Instinct MI300X", ""])
def test_an_unknown_name(name):
    assert gpu_of_device(name) is None
    assert gpu_of_key(name) is None


@pytest.mark.parametrize(
    ("gigabytes", "key"), [(8, "l4"), (23, "l4"), (46, "a100-pcie-40"), (48, "a40"), (192, "gb200"), (85, "a100-pcie")]
)
def test_the_board_that_stands_for_an_unknown_one_is_the_slowest_of_its_size(gigabytes, key):
    assert nearest_gpu(gigabytes * 10**9).key == key


def test_dense_state_under_zero():
    """Bytes a parameter, counted by hand: weight, gradient and exchange buffer, then fp32 copies and Adam's moments."""
    per = {
        (stage, precision, ranks): dense_state_bytes(
            10**6, optimizer="adam", zero_stage=stage, precision=precision, ranks=ranks
        )
        / 10**6
        for stage in (0, 1, 2)
        for precision in ("fp32", "bf16")
        for ranks in (1, 16)
    }
    assert per[0, "fp32", 1] == per[0, "fp32", 16] == 4 + 4 + 4 + 8
    assert per[0, "bf16", 1] == per[0, "bf16", 16] == 2 + 2 + 2 + 4 + 4 + 8
    for stage in (1, 2):
        assert per[stage, "fp32", 1] == 4 + 4 + 4 + 4 + 4 + 8
        assert per[stage, "bf16", 16] == 2 + 2 + 2 + (4 + 4 + 8) / 16
    assert dense_state_bytes(10, optimizer="adagrad", zero_stage=1, precision="fp32", ranks=1, engine="plain") == 120


@pytest.mark.parametrize(
    ("device", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A100-SXM4-40GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA A800-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A10", 125, 62.5, 31.2),
        ("NVIDIA A10G", 70, 35, 35),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA H800", 989.4, 494.7, 66.9),
        ("NVIDIA H100 PCIe", 756, 378, 51.2),
        ("NVIDIA H800 PCIe", 756, 378, 51.2),
        ("NVIDIA H100 NVL", 835.5, 417.5, 60),
        ("NVIDIA H200", 989.4, 494.7, 66.9),
        ("NVIDIA H200 NVL", 835.5, 417.5, 60),
        ("NVIDIA H20", 148, 74, 44),
        ("NVIDIA GH200 480GB", 989.4, 494.7, 66.9),
        ("NVIDIA GH200 144G HBM3e", 989.4, 494.7, 66.9),
        ("NVIDIA B200", 2250, 1100, 75),
        ("NVIDIA GB200", 2500, 1250, 80),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA L40S", 362, 183, 91.6),
    ],
)
def test_peak_of_known_gpus(device, bf16, tf32, fp32):
    rates = {rate: peak_flops(device, rate) for rate in ("bf16", "tf32", "fp32")}
    assert rates == {"bf16": bf16 * 1e12, "tf32": tf32 * 1e12, "fp32": fp32 * 1e12}


def test_a_peak_that_is_not_known_is_none_and_a_rate_that_is_not_is_refused():
    assert peak_flops("NVIDIA GeForce GTX 1080", "fp32") is None
    assert peak_flops("NVIDIA RTX A4000", "bf16") is None  # not an A40
    assert peak_flops("Tesla V100-SXM2-32GB", "fp32") is None  # no wheel has code for it
    with pytest.raises(ValueError, match="rate 'int8' is unknown"):
        peak_flops("NVIDIA H200", "int8")
