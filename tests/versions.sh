#!/usr/bin/env bash
# The package with other versions than those of constraints.txt:
#
#   tests/versions.sh lowest    the lowest that setup.cfg allows
#   tests/versions.sh newest    the newest that can be had
#
# They are installed into an environment of their own, which is removed again. torch alone is that of
# .venv: other builds for the same machine can be gigabytes of CUDA. With QUICK=1, as in CI, fewer tests
# run, and none of JAX.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1-}" in
  lowest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) echo "usage: tests/versions.sh lowest|newest" >&2; exit 2 ;;
esac

home=.venv/bin
uv=${UV:-$home/uv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONDONTWRITEBYTECODE # what is imported is compiled once, not by every process
export PYTHONPYCACHEPREFIX=$work/pycache PYTHONPATH=$PWD

# uv does not read where pip looks for packages, and takes the first place that has one.
pip_says() {
  local given="PIP_${1^^}"
  given=${given//-/_}
  echo "${!given:-$("$home/python" -m pip config get "global.$1" 2>/dev/null || true)}"
}
share() { # what pip has under a name, as a variable of uv's with this between several
  local found
  found=$(pip_says "$1" | xargs | tr ' ' "$3")
  [ -z "$found" ] || export "$2=$found"
}
export UV_INDEX_STRATEGY=unsafe-best-match
share index-url UV_INDEX_URL ' '
share extra-index-url UV_EXTRA_INDEX_URL ' '
share find-links UV_FIND_LINKS ','

"$uv" venv --quiet --python "$home/python" "$work/venv"
bin=$work/venv/bin
"$home/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' \
  >"$work/torch.txt"

install() { # the package with these extras
  local start=$SECONDS
  "$uv" pip install --quiet --python "$bin/python" --resolution "$resolution" \
    --constraint "$work/torch.txt" --editable ".[$1]"
  echo "Installed [$1] in $((SECONDS - start)) s."
}

# Warnings are not errors here: old packages warn of the newer ones below them.
run_tests() {
  "$bin/python" -m pytest -W default --disable-warnings --numprocesses 2 -m "not long" "$@"
}

install envpool,video,sweep,slurm,dev,examples
"$bin/python" -c 'import numpy, numba, scipy, click, torch
for module in (numpy, numba, scipy, torch): print(module.__name__, module.__version__)'
for command in "" train compare "bench cells" "experiment copying"; do
  # shellcheck disable=SC2086  # two words are two arguments
  "$bin/rims" $command --help >/dev/null
done
toy=(--num-envs 8 --rollout-steps-per-env 16 --minibatches 2 --epochs 1 --total-steps 256
  --hidden-size 16 --num-rims 4 --k 2)
repository=$PWD
(
  cd "$work"
  "$bin/rims" train --suite empty --core rim_lstm "${toy[@]}" --run-dir run
  "$bin/rims" evaluate run --suite empty --episodes 2
  "$bin/rims" record run --env MiniGrid-Empty-5x5-v0 --max-steps 5 --out episode.gif
  "$bin/rims" record run --env MiniGrid-Empty-5x5-v0 --max-steps 5 --out episode.mp4
  "$bin/rims" compare --suite empty --cores rim_gru,lstm --seeds 2 --episodes 2 "${toy[@]}" \
    --run-root compared
  "$bin/rims" plot compared --out curves.png
  "$bin/rims" experiment copying --cores rim_lstm,gru --seeds 1 --epochs 1 --steps-per-epoch 5 \
    --hidden-size 12 --num-rims 3 --k 2 --batch-size 4 --train-blanks 3 --test-sequences 8 \
    --validation-sequences 8 --run-root copying
  "$bin/rims" sweep --config "$repository/examples/sweep.toml" --help >/dev/null
)
# The layers, their kernels, NFM, and what is made of them.
if [ -n "${QUICK:-}" ]; then
  run_tests tests/test_rims_{fixtures,layers}.py tests/test_rims_native_*.py \
    tests/test_rims_scan.py::test_every_unit_size_around_vector_widths \
    tests/test_nfm_fixtures.py tests/test_dependencies.py
else
  run_tests tests/test_rims_{fixtures,layers,scan}.py tests/test_rims_native_*.py \
    tests/test_rims_scan_{native,operator}.py tests/test_nfm_{attention,fixtures}.py \
    tests/test_envs_vector.py tests/test_agents_ppo.py tests/test_cli.py tests/test_dependencies.py
  # JAX needs a newer NumPy than the rest, so it comes last.
  install envpool,video,sweep,slurm,jax,dev,examples
  run_tests tests/test_rims_jax_{fixtures,modules,native}.py
fi
echo "Passed with the $1 versions."
