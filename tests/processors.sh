#!/usr/bin/env bash
# The numerical tests once more, as other processors would round: with fewer instructions, sums in
# another order, one thread or two. What equals bit by bit here alone fails in one of these.
#
#   tests/processors.sh [PYTEST ARGUMENTS]     an old processor and a newer one
#   QUICK=1 tests/processors.sh ...            an old one and few of the tests, as CI does
#   EACH=1 tests/processors.sh ...             every setting alone, with one thread and with two
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

# What computes with numbers that are not whole, in seconds rather than minutes.
files=(
  tests/test_rims_{authors,cell_options,cells,dtypes,fixtures,functional,layers,mask,options}.py
  tests/test_rims_{parameters,properties,repeated,sequences,trace,usage}.py
  tests/test_rims_scan*.py
  tests/test_rims_jax_{agreement,fixtures,modules,native,transforms}.py
  tests/test_nfm_{attention,fixtures,in_place,insertion,models_parts,module,network,recomputed}.py
  tests/test_agents_{advantages,cores,encoder,losses,optimizer,policy,ppo,resetting,rollout}.py
  tests/test_experiments_{cores,language_model}.py
)

if [ -n "${QUICK:-}" ]; then
  files=(
    tests/test_rims_{fixtures,functional,layers}.py tests/test_rims_scan_sums.py
    tests/test_nfm_{fixtures,in_place}.py tests/test_experiments_cores.py
    tests/test_agents_{advantages,encoder,losses,optimizer,policy,ppo,rollout}.py
  )
fi

# What NumPy chooses by processor; its names differ from version to version.
of_numpy=$("$python" -c '
try: from numpy._core._multiarray_umath import __cpu_dispatch__ as names
except ImportError: from numpy.core._multiarray_umath import __cpu_dispatch__ as names
print(*names)')

old=(
  ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
  OPENBLAS_CORETYPE=Nehalem "NPY_DISABLE_CPU_FEATURES=$of_numpy"
  XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=
)
newer=(
  ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell
  XLA_FLAGS=--xla_cpu_max_isa=AVX2 NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma
)

failed=()
# run THREADS VARIABLE=VALUE... -- PYTEST ARGUMENTS
run() {
  local threads=$1 settings=() cache
  shift
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  cache=$(mktemp -d) # machine code made for another processor is of no use to this one
  echo "== $threads thread(s), ${settings[*]}"
  env "${settings[@]}" RIMS_TEST_THREADS="$threads" RIMS_CACHE_DIR="$cache" \
    OMP_WAIT_POLICY=passive "$python" -m pytest "${files[@]}" -m "not long" "$@" ||
    failed+=("$threads thread(s), ${settings[*]}")
  rm -rf "$cache"
}

if [ -n "${QUICK:-}" ]; then
  run 1 "${old[@]}" -- "$@"
elif [ -z "${EACH:-}" ]; then
  run 1 "${old[@]}" -- "$@"
  run 2 "${newer[@]}" -- "$@"
else
  for threads in 1 2; do
    for setting in "${old[@]:0:6}" "${newer[@]:0:5}"; do run $threads "$setting" -- "$@"; done
    run $threads "${old[@]:6}" -- "$@"
    run $threads "${newer[@]:5}" -- "$@"
  done
fi
for each in "${failed[@]}"; do echo "failed: $each"; done
exit $((${#failed[@]} > 0))
