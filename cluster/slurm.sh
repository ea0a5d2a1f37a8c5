#!/usr/bin/env bash
# A run on a Slurm allocation: a Ray head on the first node, Ray nodes on the others, and one training command.
#   sbatch --nodes=4 --gpus-per-node=2 cluster/slurm.sh configs/mnist.yaml storage.url=/shared/runs [key=value ...]
# 120 s before the time limit the run saves, and this script requeues the job, which then resumes.
# Slurm itself requeues a preempted job. Every node must reach the storage and the data.
#   PYTHON names the interpreter with ebmscale[cluster] on every node (default: .venv/bin/python, else python3).
#SBATCH --job-name=ebmscale
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ebmscale-%j.log
set -euo pipefail

if [[ $# -eq 0 || -z ${SLURM_JOB_ID:-} ]]; then
  echo "error: submit this script to Slurm with a configuration: sbatch cluster/slurm.sh CONFIG [key=value ...]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
ray=("$python" -m ray.scripts.scripts)
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
cpus=${SLURM_CPUS_ON_NODE:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
workers=$((${#nodes[@]} * (gpus > 0 ? gpus : 1)))

# Every job has its own port and token, so jobs on the same node do not interfere.
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')}

started=()
trainer=
signalled=

on() { # runs a command on a node, in the background
  local node=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@" &
  started+=("$!")
}

# shellcheck disable=SC2329 # called by the trap
stop_all() {
  trap - USR1 TERM INT
  local pid
  for pid in ${trainer:+"$trainer"} "${started[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  wait || true
}
trap stop_all EXIT

# shellcheck disable=SC2329 # called by the trap
pass_on() { # the run saves and exits
  signalled=$1
  echo "slurm: $1 received, the run saves and exits"
  [[ -z $trainer ]] || kill -TERM "$trainer" 2>/dev/null || true
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM INT

address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | tr ' ' '\n' | grep -m1 -F .)
echo "slurm: Ray head on $head ($address:$port), ${#nodes[@]} node(s), up to $workers worker(s)"
on "$head" "${ray[@]}" start --head --block --node-ip-address="$address" --port="$port" --num-cpus="$cpus" \
  --include-dashboard=false --disable-usage-stats
for ((attempt = 0; ; attempt++)); do
  "${ray[@]}" health-check --address "$address:$port" >/dev/null 2>&1 && break
  if ((attempt == ${HEAD_ATTEMPTS:-60})) || ! kill -0 "${started[0]}" 2>/dev/null; then
    echo "error: the Ray head on $head did not start; its log is above." >&2
    exit 6
  fi
  [[ -z $signalled ]] || exit 130
  sleep "${HEAD_PAUSE_S:-2}"
done
for node in "${nodes[@]:1}"; do
  on "$node" "${ray[@]}" start --block --address="$address:$port" --num-cpus="$cpus" --disable-usage-stats
done

config=$1
shift
RAY_ADDRESS=$address:$port "$python" -m ebmscale train "$config" "ray.num_workers=[1,$workers]" "$@" &
trainer=$!
code=0
[[ -z $signalled ]] || kill -TERM "$trainer"
while :; do # a trap interrupts wait, so this repeats it until the run has ended
  code=0
  wait "$trainer" || code=$?
  kill -0 "$trainer" 2>/dev/null || break
done
trainer=

if [[ $signalled == USR1 && $code -eq 130 ]]; then
  echo "slurm: saved; the job is requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
