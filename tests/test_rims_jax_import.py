"""Without JAX the torch side works, and what needs it says what to install, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selection import short

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(source: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BLOCK.format(names=blocked) + source],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("missing", short(["jax", "flax"], 0))
def test_without_jax_one_line_says_what_to_install(missing: str, tmp_path: Path) -> None:
    done = run(
        "import rims, torch\n"
        "assert rims.RIM_GRU(3, 8, 4, 2)(torch.zeros(2, 1, 3))[0].shape == (2, 1, 8)\n"
        "try:\n"
        "    import rims.jax\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "import cli\n"
        f"sys.argv = ['rims', 'bench', 'jax', '--quick', '--out', {str(tmp_path / 'out')!r}]\n"
        "cli.main()\n",
        (missing,),
    )
    expected = f"rims.jax needs {missing}, which is not installed: pip install 'rims-toolkit[jax]'"
    assert done.stdout == expected + "\n"
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_torch_side_does_not_load_jax() -> None:
    loaded = (
        "import rims, nfm, rims.bench.run, agents.model.policy\n"
        "print(sorted({'jax', 'flax', 'optax', 'rims.jax'} & set(sys.modules)))"
    )
    done = run(loaded)
    assert (done.stdout, done.returncode) == ("[]\n", 0)


@pytest.mark.long
def test_importing_changes_no_setting_of_jax() -> None:
    done = run(
        "import jax\nbefore = dict(jax.config.values)\nimport rims.jax\n"
        "print([n for n, v in jax.config.values.items() if v != before[n]])"
    )
    assert done.stdout == "[]\n"
