#!/usr/bin/env bash
# What most needs a GPU, in eight minutes: layers against Keras's, the cuDNN tests, half precision,
# then both medium language models side by side for as long as is left.
#
#     benchmarks/on_gpu.sh OUTPUT_DIR PTB_DIR [SECONDS]
#
# OUTPUT_DIR gets layers.txt, layers.json, tests.txt and the histories of the language models.
# PTB_DIR holds ptb.train.txt, ptb.valid.txt and ptb.test.txt. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1 ptb=$2 seconds=${3:-480}
python=${PYTHON:-python3}
export TF_CPP_MIN_LOG_LEVEL=3 TF_FORCE_GPU_ALLOW_GROWTH=true PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=0

left() { echo $((seconds - SECONDS)); }

"$python" -c 'import tensorflow as tf; assert tf.config.list_physical_devices("GPU"), "no GPU"' || exit 1
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/gpu.txt"

timeout 150 "$python" benchmarks/layers.py --layers=LSTM --repeats=5 \
    --shapes=20x35x650x650,24x500x123x250 \
    --variants=keras,none,sequence,frame,sequence-renorm,frame-renorm \
    --json="$out/layers.json" 2>&1 | tee "$out/layers.txt" || failed=1

models=("baseline:--model=baseline" "frame-renorm:--model=batch_norm --renorm")
for model in "${models[@]}"; do
    # shellcheck disable=SC2086  a line of flags
    timeout "$(left)" "$python" training/train_ptb.py --data_dir="$ptb" --size=medium \
        ${model#*:} --output_dir="/tmp/ptb-medium/${model%%:*}" \
        >"$out/${model%%:*}.txt" 2>&1 &
done

# The tests compare with float32, not with TF32.
NVIDIA_TF32_OVERRIDE=0 timeout "$(left)" "$python" -m pytest -q -p no:cacheprovider --numprocesses 4 \
    -m 'not slow and not exhaustive' tests/test_cudnn_route.py tests/test_numerics.py \
    >"$out/tests.txt" 2>&1 || failed=1
tail -n 30 "$out/tests.txt"

wait
for model in "${models[@]}"; do
    for file in history.csv results.json; do
        cp "/tmp/ptb-medium/${model%%:*}/$file" "$out/${model%%:*}-$file" 2>/dev/null
    done
    tail -n 2 "$out/${model%%:*}.txt"
done
exit $failed
