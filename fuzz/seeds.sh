#!/usr/bin/env bash
# Lays the seeds of the targets `cdr`, `picture`, `dataset` and `gguf` into fuzz/corpus, from tests/golden.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")"
golden=../tests/golden

# seed TARGET NAME BYTES FILE: the file with these bytes (as printf writes them) in front.
seed() {
    mkdir -p "corpus/$1"
    { printf "$3"; cat "$4"; } > "corpus/$1/$2"
}

# The messages by their number in fuzz_targets/cdr.rs.
number=0
for message in joint_state compressed_image image bool float64_multi_array joint_trajectory string tf_message \
    gripper_send_goal_request gripper_send_goal_response - gripper_get_result_response - gripper_feedback \
    cancel_goal_request cancel_goal_response; do
    if [ "$message" != - ]; then
        seed cdr "$message" "\\x$(printf %02x $number)" "$golden/ros2/$message.cdr"
    fi
    number=$((number + 1))
done
# The golden picture has 3x2 pixels.
seed cdr picture_raw '\x10\x02\x01' "$golden/ros2/image.cdr"
seed cdr picture_compressed '\x11\x02\x01' "$golden/ros2/compressed_image.cdr"

# Pictures as files: those of 37x45 and of 11x7 pixels each have a seed that fits.
for file in "$golden"/decoded/*.{jpg,png,webp}; do
    name=$(basename "$file")
    seed picture "$name" '' "$file"
    seed cdr "large_$name" '\x12\x24\x2c' "$file"
    seed cdr "small_$name" '\x12\x0a\x06' "$file"
done

# Every file of every dataset: its dataset by the place in fuzz_targets/dataset.rs, its own place in the order of paths.
datasets=(lerobot_v21 lerobot_v30 lerobot_v21_av1 lerobot_v30_av1 lerobot_v30_h264)
for which in "${!datasets[@]}"; do
    number=0
    while IFS= read -r file; do
        byte=$((number * ${#datasets[@]} + which))
        seed dataset "${datasets[$which]}_$number" "\\x$(printf %02x $byte)" "$file"
        number=$((number + 1))
    done < <(find "$golden/${datasets[$which]}" -type f ! -name '*.rgb' | LC_ALL=C sort)
done

seed gguf llama '' "$golden/gguf_llama/model.gguf"
