# Sourced by the batch files that slurm/submit.py writes: what the jobs of a run do first and last.
#   source slurm/stage.sh RUN STAGE
#
# A job leaves states/N.begun and states/N.ended in RUN/slurm, from which status.py knows what SLURM has forgotten.
# `SUCCESSORS` names the jobs that would train on behind this one, where the cluster forbids requeue.

stage_run=$1
stage_state="$1/slurm/states/${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"

leave() {
    printf '%s\n' "$2" > "$stage_state.$1.tmp" && mv "$stage_state.$1.tmp" "$stage_state.$1"
}

at_the_end() {
    # A node that SLURM has lost sight of may work on, while the job has been started again elsewhere.
    [ "$(cat "$stage_state.begun")" = "$stage_begun" ] || return
    leave ended "{\"code\": $1, \"time\": $(date +%s)}"
    # A run that is to end needs none of them; each would wait for its nodes only to learn that.
    local attempts="$stage_run/slurm/attempts.json"
    if [ "$1" -ne 0 ] && [ -e "$attempts" ] && ! grep -q '"ended": ""' "$attempts"; then
        for name in ${SUCCESSORS:-}; do scancel --state=PENDING --name="$name"; done
    fi
}

rm -f "$stage_state.ended"
stage_begun="{\"time\": $(date +%s), \"restarts\": ${SLURM_RESTART_COUNT:-0}}"
leave begun "$stage_begun"
trap 'at_the_end $?' EXIT
# SLURM ends jobs by SIGTERM. Without this, bash takes the code of the command before it: 0.
trap 'exit 143' TERM
case $2 in
    shards | merge) ;; # cancel.py ends them, unless another run waits for the same shards
    *)
        if [ -e "$stage_run/slurm/cancelled" ]; then
            echo "not run: stopped by the user"
            exit 75
        fi
        ;;
esac
source slurm/common.sh
