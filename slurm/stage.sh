# Sourced by the batch files that slurm/submit.py writes: what the jobs of a run do first and last.
#   source slurm/stage.sh RUN STAGE
#
# A job leaves states/N.begun and states/N.ended in RUN/slurm, from which status.py knows what SLURM has forgotten.
# `SUCCESSORS` names the jobs that would train on after this one, where the cluster forbids requeue.

run=$1 stage=$2
state="$run/slurm/states/${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"

leave() {
    printf '%s\n' "$2" > "$state.$1.tmp" && mv "$state.$1.tmp" "$state.$1"
}

stopped_by_the_user() {
    [ -e "$run/slurm/cancelled" ] && return 0
    # Older than the submission, the record is of an earlier stop, and this job is to go on.
    [ "$run/stopped.json" -nt "$run/slurm/jobs.json" ] && grep -q '"stop file"' "$run/stopped.json"
}

at_the_end() {
    leave ended "{\"code\": $1, \"time\": $(date +%s)}"
    [ "$stage" = train ] || return
    # Wrong settings and damaged data do not become right by another try.
    if [ "$1" -eq 2 ] || [ "$1" -eq 3 ] || { [ "$1" -eq 75 ] && stopped_by_the_user; }; then
        for name in ${SUCCESSORS:-}; do scancel --state=PENDING --name="$name"; done
    fi
}

rm -f "$state.ended"
leave begun "{\"time\": $(date +%s), \"restarts\": ${SLURM_RESTART_COUNT:-0}}"
trap 'at_the_end $?' EXIT
if stopped_by_the_user; then
    echo "not run: stopped by the user"
    exit 75
fi
if [ ! -f .venv/bin/activate ]; then
    echo "error: $PWD has no .venv: run 'make install' there first" >&2
    exit 2
fi
source .venv/bin/activate
