#!/usr/bin/env bash
# Fills the GPU rows of RESULTS.md: the tests that need a GPU, throughput of four workloads, of W1 in each way, of a ResNet-12,
# the forms of a convolution, and five recipes of full length for four minutes each, all at once; or the parts that are named.
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

for part in ${*:-tests throughput compiled resnet convolution recipes}; do
    case $part in
        tests) timeout 300 "$python" -m pytest -q -m gpu -n 6 tests/gpu tests/balance/test_every_balance.py \
            2>&1 | tee "$out/gpu_tests.txt" ;;
        throughput) timeout 300 "$python" -m benchmarks.throughput --device cuda --workloads W1,W3,W4,W5 \
            --systems plain,auto --repeats 3 --seconds 0.4 --out "$out/cuda_throughput.json" ;;
        compiled) timeout 180 "$python" -m benchmarks.throughput --device cuda --workloads W1 \
            --systems plain,eager,auto,compiled --repeats 5 --seconds 0.4 --out "$out/cuda_compiled.json" ;;
        resnet) timeout 120 "$python" -m benchmarks.throughput --device cuda --workloads W7 \
            --systems plain,auto --repeats 3 --seconds 0.4 --out "$out/cuda_resnet.json" ;;
        convolution) timeout 45 "$python" -m benchmarks.convolution --device cuda --repeats 3 --seconds 0.05 \
            --out "$out/cuda_convolution.json" ;;
        recipes)
            running=()
            for recipe in maml fomaml reptile anil protonet; do
                "$python" -m metarun "experiment=paper/${recipe}_5w1s" train.max_time=252s test.tasks=600 \
                    "hydra.run.dir=$out/$recipe" > "$out/$recipe.txt" 2>&1 &
                running+=($!)
            done
            for one in "${running[@]}"; do wait "$one" || failed=1; done ;;
        *) echo "benchmarks/gpu.sh: there is no part $part" >&2; exit 2 ;;
    esac || failed=1
done
exit $failed
