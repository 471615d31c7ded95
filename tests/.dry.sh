#!/usr/bin/env bash
# The package with other versions than those of constraints.txt:
#
#   tests/versions.sh lowest    the lowest that setup.cfg allows
#   tests/versions.sh newest    the newest that can be had
#
# They are installed into an environment of their own, which is removed again. torch alone is that of
# .venv: other builds for the same machine can be gigabytes of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1-}" in
  lowest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) echo "usage: tests/versions.sh lowest|newest" >&2; exit 2 ;;
esac

home=.venv/bin
uv=/tmp/v-uv/bin/uv
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

# JAX needs a newer NumPy than the rest, so it comes last.
env | grep ^UV_
"$uv" pip install --dry-run --python "$bin/python" --resolution "$resolution" --constraint "$work/torch.txt" --editable ".[envpool,video,sweep,slurm,dev,examples]" 2>&1 | grep -E "torch==|numpy==|click==|uv==|ruff==|Would|rror|numba"
