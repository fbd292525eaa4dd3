# Sourced by the batch script of a job: brings the run back to the queue until it is done.
#
#   . requeue.sh FOLDER TRIES
#
# FOLDER: in it each job has one of its own. Every start adds a line to `starts` there,
# and a start that finds progress empties it. Rank 0 makes `stop` when nothing is left to do, and
# the link `run` to the run's directory, where `failed-nodes` lists nodes to avoid; delete a line
# there to forgive a node.
# What the user has excluded when the job was submitted is in `excluded`.
# TRIES: starts without progress, at most.
#
# It lives in the batch script because Slurm's commands are here; the ranks may be in a container.
# shellcheck shell=bash

# In an array each run is a job of its own; SLURM_JOB_ID would be the number of none of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
folder=$1/$job
tries=$2
cancelled=

requeue() {
    # Slurm then asks this shell and what it has started to end, and forces it some seconds later.
    trap '' TERM
    local avoid
    avoid=$(cat "$folder/excluded" "$folder/failed-nodes" "$folder/run/failed-nodes" 2>/dev/null |
        sort -u | paste -sd,)
    scontrol requeue "$job" || return
    # Only of a job that waits can the nodes be changed. An empty list forgives those of before.
    scontrol update "JobId=$job" "ExcNodeList=$avoid"
    sleep 60
}

on_term() {
    # At the time limit, too; but that is a reason to go on.
    [ -n "${LLM_PRETRAIN_END:-}" ] && [ "$(date +%s)" -ge "$LLM_PRETRAIN_END" ] || cancelled=1
}

at_exit() {
    local code=$?
    trap - EXIT
    # Slurm tells the batch script itself only when the job is cancelled, or preempted and then
    # requeued by Slurm.
    if [ -n "$cancelled" ] || [ -e "$folder/stop" ]; then
        exit "$code"
    fi
    local starts
    starts=$(wc -l <"$folder/starts")
    if [ "$starts" -ge "$tries" ]; then
        echo "given up after $starts starts without progress" | tee "$folder/given-up" >&2
        exit $((code ? code : 1))
    fi
    echo "requeueing job $job (start $starts of $tries without progress, exit code $code)" >&2
    requeue || exit $((code ? code : 1))
}

note_failed_nodes() {
    # Of the nodes of the start before this one, those that Slurm holds for dead now. To exclude them
    # cannot keep the job from ever starting: it has just started without them. A drained node is
    # left out: somebody has decided that, and decides when it is fit again.
    local nodes file=$folder/failed-nodes
    nodes=$(tail -n 1 "$folder/starts" 2>/dev/null | cut -d ' ' -f 2)
    [ -n "$nodes" ] || return 0
    # Rank 0 may never have got as far as to make the link.
    [ -d "$folder/run" ] && file=$folder/run/failed-nodes
    sinfo --noheader --all --Node --nodes="$nodes" --format='%N %T' |
        awk '$2 ~ /^(down|fail)/ { print $1 }' | sort -u |
        while read -r node; do
            grep -qxF "$node" "$file" 2>/dev/null || echo "$node" >>"$file"
        done
}

mkdir -p "$folder"
rm -f "$folder/stop"
note_failed_nodes
# At the first start, before we have changed it.
[ -e "$folder/excluded" ] ||
    squeue --noheader --jobs="$SLURM_JOB_ID" --format=%x | sed '/^$/d' >"$folder/excluded"
printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%S)" "$SLURM_JOB_NODELIST" >>"$folder/starts"
export LLM_PRETRAIN_JOB=$folder
# When Slurm will end the job; where it does not say, signals alone must do.
end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e 2>/dev/null) &&
    end=$(date --date="$end" +%s 2>/dev/null) && export LLM_PRETRAIN_END=$end
trap at_exit EXIT
trap on_term TERM
