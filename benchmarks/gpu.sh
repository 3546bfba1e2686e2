#!/usr/bin/env bash
# Fills the GPU rows of RESULTS.md in one call of under ten minutes: throughput of W1-W7, the forms of a convolution, the
# tests that need a GPU, and the time of W1's 60,000 steps, extrapolated from a run of one minute.
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

timeout 330 "$python" -m benchmarks.throughput --device cuda --systems plain,auto,vmap,compiled \
    --repeats 3 --seconds 0.5 --out "$out/throughput_cuda.json" || failed=1

timeout 45 "$python" -m benchmarks.convolution --device cuda --repeats 3 --seconds 0.05 \
    --out "$out/convolution_cuda.json" || failed=1

timeout 90 "$python" -m pytest -q -m gpu 2>&1 | tee "$out/gpu_tests.txt" || failed=1

run=$(mktemp -d)/w1
timeout 100 "$python" -m metarun $("$python" -m benchmarks.workloads W1) device=cuda \
    train.steps=60000 train.max_time=60s val.every=1000 "hydra.run.dir=$run" || failed=1
"$python" - "$run" "$out/w1_60000_steps_cuda.json" <<'PY' || failed=1
import json
import sys
from pathlib import Path

run, out = map(Path, sys.argv[1:])
result = json.loads((run / "result.json").read_text())
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
good = [line["time"] - lines[0]["time"] for line in lines if line.get("val/accuracy", 0) >= 0.98]
seconds = result["cost"]["train_s"]
row = {
    "steps": result["steps"],
    "seconds": seconds,
    "estimate_of_60000_steps_s": 60000 * seconds / result["steps"],
    "seconds_to_98_percent_on_validation": good[0] if good else None,
    "result": result,
}
out.write_text(json.dumps(row, indent=2) + "\n")
print(json.dumps({name: value for name, value in row.items() if name != "result"}, indent=2))
PY
exit $failed
