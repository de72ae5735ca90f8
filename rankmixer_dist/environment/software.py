"""Checks of Python and of the installed packages: the tested version, and that it really works."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

from rankmixer_dist.environment.check import IN_TREE, INSTALL, REINSTALL, REINSTALL_FOR_GPUS, Check, guarded
from rankmixer_dist.environment.driver import FBGEMM_FOR_CUDA, lacks_library, without_library
from rankmixer_dist.environment.pins import disagreement, installed, pinned

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ROOT = Path(__file__).resolve().parents[2]
FBGEMM_BUILDS = {"cpu": "fbgemm-gpu-cpu", "cuda": FBGEMM_FOR_CUDA}
EXACT = ("torch", "torchrec", *FBGEMM_BUILDS.values())
"""What only loads in the tested versions together; another version of anything else that works is a warning."""


def python() -> Check:
    """The interpreter is of a version for which all pins are built."""
    found = "{}.{}.{}".format(*sys.version_info[:3])
    if found.rpartition(".")[0] in PYTHONS:
        return Check("python", found)
    wanted = f"{', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"
    return Check("python", found, "bad", f"install Python {wanted}, then {INSTALL}")


def virtual_environment() -> Check:
    """The interpreter belongs to a virtual environment (or conda), so that installing changes nothing else."""
    prefix = Path(sys.prefix)
    if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX") == sys.prefix:
        inside = prefix.is_relative_to(ROOT)
        return Check("virtual environment", str(prefix.relative_to(ROOT)) if inside else str(prefix))
    mend = f"{INSTALL}, then use .venv/bin/python launch/doctor.py" if IN_TREE else "install into one: python -m venv"
    return Check("virtual environment", "none", "warn", mend)


@guarded("rankmixer_dist")
def project() -> Check:
    """The verbs import the packages of this source tree, where there is one."""
    # Building leaves an egg-info folder in the source tree; only what is really installed has a RECORD.
    found = [one for one in metadata.distributions(name="rankmixer_dist") if one.read_text("RECORD")]
    if not found:
        return Check("rankmixer_dist", "not installed", "bad", INSTALL)
    origin = json.loads(found[0].read_text("direct_url.json") or "{}")
    if IN_TREE and "dir_info" in origin and origin["url"] != ROOT.as_uri():
        return Check("rankmixer_dist", f"installed from {origin['url']}", "bad", INSTALL)
    return Check("rankmixer_dist", found[0].version)


@guarded("torch")
def torch() -> Check:
    """torch has the pinned version and multiplies matrices."""
    import torch

    wrong = disagreement("torch")
    if wrong:
        return Check("torch", wrong, "bad", REINSTALL)
    ones = torch.ones(4, 4)
    if float((ones @ ones).sum()) != 64:
        return Check("torch", f"{torch.__version__}, which multiplies wrongly", "bad", REINSTALL)
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    return Check("torch", f"{torch.__version__} ({build})")


@guarded("fbgemm")
def fbgemm() -> Check:
    """Exactly one fbgemm build is installed, it loads with this torch, and an operator of it computes.

    The CUDA build does not load without the driver's library, which a machine that only builds images does not have.
    """
    builds = [name for name in FBGEMM_BUILDS.values() if installed(name)]
    if not builds:
        named = " (with a GPU: ".join(_without_dependencies(name) for name in FBGEMM_BUILDS.values())
        return Check("fbgemm", "not installed", "bad", f"{named})")
    if len(builds) != 1:
        both = "fbgemm-gpu and fbgemm-gpu-cpu, which overwrite each other"
        first = "remove .venv" if IN_TREE else "pip uninstall both"
        return Check("fbgemm", both, "bad", f"{first}, then {INSTALL}")
    wrong = disagreement(builds[0])
    if wrong:
        return Check("fbgemm", wrong, "bad", _without_dependencies(builds[0]))
    import torch

    if builds[0] == FBGEMM_FOR_CUDA:
        if torch.version.cuda is None:
            return Check("fbgemm", f"{builds[0]} is for CUDA, but torch is a CPU build", "bad", REINSTALL_FOR_GPUS)
        if lacks_library():
            return without_library("fbgemm", f"{installed(builds[0])} ({builds[0]})")
    import fbgemm_gpu  # noqa: F401  loads the operators

    sums = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
    if sums.tolist() != [0, 1, 3]:
        return Check("fbgemm", f"{builds[0]}: a cumulative sum of 1, 2 gave {sums.tolist()}", "bad", REINSTALL)
    return Check("fbgemm", f"{installed(builds[0])} ({builds[0]}), an operator ran")


@guarded("torchrec")
def torchrec() -> Check:
    """torchrec has the pinned version, and an EmbeddingBagCollection looks up and takes a gradient."""
    wrong = disagreement("torchrec")
    if wrong:
        return Check("torchrec", wrong, "bad", _without_dependencies("torchrec"))
    if lacks_library():
        return without_library("torchrec", installed("torchrec") or "")
    import torch
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=8, feature_names=["f"])
    lengths = torch.tensor([2, 0, 1], dtype=torch.int32)
    ids = KeyedJaggedTensor.from_lengths_sync(["f"], torch.tensor([1, 2, 3]), lengths)
    bags = EmbeddingBagCollection(tables=[table])
    bags(ids).values().sum().backward()
    gradient = next(bags.parameters()).grad
    if gradient is None or float(gradient.sum()) != 12:
        return Check("torchrec", "an embedding lookup gave a wrong gradient", "bad", REINSTALL)
    return Check("torchrec", f"{installed('torchrec')}, an embedding lookup ran")


@guarded("deepspeed")
def deepspeed() -> Check:
    """deepspeed drives the device that torch sees."""
    import torch

    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if expected == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better
    import deepspeed  # noqa: F401
    from deepspeed.accelerator import get_accelerator

    name = get_accelerator().device_name()
    found = f"{installed('deepspeed')}, accelerator {name}"
    if name != expected:
        return Check("deepspeed", f"{found}, but torch sees {expected}", "bad", "unset DS_ACCELERATOR")
    return _told(Check("deepspeed", found), f"pip install --no-build-isolation deepspeed=={pinned()['deepspeed']}")


@guarded("ray")
def ray() -> Check:
    """ray's data library imports; a cluster named by RAY_ADDRESS is told, not called."""
    import ray.data  # noqa: F401

    address = os.environ.get("RAY_ADDRESS")
    found = f"{installed('ray')}, {f'RAY_ADDRESS {address}' if address else 'local cluster'}"
    return _told(Check("ray", found), f'pip install "ray[data]=={pinned()["ray"]}"')


@guarded("pyarrow")
def pyarrow() -> Check:
    """pyarrow writes and reads Parquet."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"row_id": [1, 2]})
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer)
    if not pyarrow.parquet.read_table(pyarrow.BufferReader(buffer.getvalue())).equals(table):
        return Check("pyarrow", "a Parquet file came back different", "bad", REINSTALL)
    check = Check("pyarrow", f"{pyarrow.__version__}, Parquet written and read")
    return _told(check, f"pip install pyarrow=={pinned()['pyarrow']}")


def _told(works: Check, mend: str) -> Check:
    """A package that works, with a warning where its version is not the tested one."""
    wrong = disagreement(works.name)
    return works if wrong is None else Check(works.name, wrong, "warn", mend)


def _without_dependencies(distribution: str) -> str:
    # torchrec's own metadata asks for the CUDA build of fbgemm, on every machine.
    return f"pip install --no-deps {distribution}=={pinned()[distribution]}"
