#!/usr/bin/env bash
# Fills the GPU rows of RESULTS.md in one call of under ten minutes: the tests that need a GPU, throughput of five workloads,
# of W1 compiled, and the forms of a convolution; or those of these parts that are named.
# Needs CUDA, metarun's dependencies, and Omniglot's two zips under $METARUN_DATA. Writes to $OUT or benchmarks/results.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export METARUN_CACHE=${METARUN_CACHE:-$(mktemp -d)}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "benchmarks/gpu.sh: torch sees no CUDA device here, so nothing is measured. Run it on a machine with one." >&2
    exit 2
fi
mkdir -p "$out"
failed=0

for part in ${*:-tests throughput compiled convolution}; do
    case $part in
        tests) timeout 150 "$python" -m pytest -q -m gpu -n 6 tests/gpu tests/balance/test_every_balance.py \
            2>&1 | tee "$out/gpu_tests.txt" ;;
        throughput) timeout 230 "$python" -m benchmarks.throughput --device cuda --workloads W1,W3,W4,W5,W7 \
            --systems plain,auto --repeats 3 --seconds 0.4 --out "$out/cuda_throughput.json" ;;
        compiled) timeout 120 "$python" -m benchmarks.throughput --device cuda --workloads W1 \
            --systems plain,auto,compiled --repeats 5 --seconds 0.4 --out "$out/cuda_compiled.json" ;;
        convolution) timeout 45 "$python" -m benchmarks.convolution --device cuda --repeats 3 --seconds 0.05 \
            --out "$out/cuda_convolution.json" ;;
        *) echo "benchmarks/gpu.sh: there is no part $part" >&2; exit 2 ;;
    esac || failed=1
done
exit $failed
