# Sourced by every batch file here: this project's Python, and the end of a job that was called wrongly.

fail() {
    echo "error: $1" >&2
    exit 2
}

# An environment of the user's own (conda, modules) is as good; sbatch hands it on.
if [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
elif ! python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("deepspeed") is None)' 2>/dev/null; then
    fail "$PWD has no .venv, and no environment with deepspeed is active: run 'make install' there first"
fi
# srun does not take this from sbatch by itself.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# The option $1 and which part of the work is this job's, as I/N; nothing outside an array.
array_part() {
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] ||
        echo "$1 $((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT"
}
