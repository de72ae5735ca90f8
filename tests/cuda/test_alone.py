"""A machine with torch and pytest alone can be tried: none of the project's other libraries is imported on the way."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MISSING = (
    "torchrec", "fbgemm_gpu", "deepspeed", "ray", "pyarrow", "pandas", "pydantic", "omegaconf", "yaml", "rich",
    "psutil", "sklearn", "tqdm", "matplotlib", "jinja2", "tensorboard", "hypothesis",
)  # fmt: skip
CODE = f"""
import sys
for name in {MISSING!r}:
    sys.modules[name] = None  # an import raises
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_layers_and_speed_need_torch_alone(tmp_path):
    out = tmp_path / "found.json"
    options = ["--json", str(out), "--only", "tests/numerics/test_rankmixer.py"]
    script = str(ROOT / "tests" / "cuda" / "alone.py")
    run = subprocess.run(
        [sys.executable, "-c", CODE, script, *options],
        env={"PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(out.read_text())
    assert found["device"].startswith("CPU ")
    assert {row["layer"] for row in found["layers"]} == {
        "rankmixer: test_per_token_ffn_matches_reference",
        "rankmixer: test_backbone_matches_reference",
    }
    assert all(0 < row["error"] <= row["limit"] for row in found["layers"])
    assert not found["failed"]
    assert [figure["name"] for figure in found["figures"]] == [
        "RankMixer-trial forward, fp32",
        "RankMixer-trial train, fp32",
    ]
    assert "torch finds no GPU" in run.stdout
