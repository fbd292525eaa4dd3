# What the scripts beside this one share: a site's settings, submission, starting the ranks. They
# source it from the folder they are submitted from, which is that of the project.
#
# Settings, from the environment:
#   SITE     one of slurm/sites/, without .env
#   OPTIONS  options of sbatch beside the site's, such as "--nodes=4 --account=a1"
#   VENV     virtual environment to activate; default: .venv in the project's folder where there is
#            one. none: the python on PATH
#   IMAGE    container, where the site's file asks for one
# shellcheck shell=bash
set -euo pipefail

# What a site's file sets. `rank`: lines of shell that each rank runs, inside of its container.
sbatch_options=() srun_options=() container=() bind=() rank=
setup() { :; }
folder=${SLURM_SUBMIT_DIR:-$PWD}
if [ -n "${SITE:-}" ]; then
    if [ ! -f "$folder/slurm/sites/$SITE.env" ]; then
        echo "SITE: $folder/slurm/sites/$SITE.env does not exist" >&2
        exit 2
    fi
    # shellcheck source=/dev/null
    . "$folder/slurm/sites/$SITE.env"
fi

# submit SCRIPT [OPTION...] -- [ARGUMENT...]: hand SCRIPT to Slurm; OPTIONS wins over OPTION.
submit() {
    local script=$1 own=() further
    shift
    while [ "$1" != -- ]; do
        own+=("$1")
        shift
    done
    shift
    read -ra further <<<"${OPTIONS:-}"
    sbatch "${sbatch_options[@]}" "${own[@]}" "${further[@]}" "$script" "$@"
}

activate() {
    local venv=${VENV:-$folder/.venv}
    if [ -f "$venv/bin/activate" ]; then
        # shellcheck source=/dev/null
        . "$venv/bin/activate"
    elif [ -n "${VENV:-}" ] && [ "$VENV" != none ]; then
        echo "VENV: $VENV is no virtual environment" >&2
        return 2
    fi
}

# ranks MODULE [ARGUMENT...]: python -m MODULE in every task of the job.
ranks() {
    activate
    setup
    # Else a job submitted from within another one would bind its ranks to that one's cores.
    unset "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}"
    # Since Slurm 22.05 srun does not take --cpus-per-task from sbatch.
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
    # Ranks that stop together end one after the other, with an exit code that is not 0: so the
    # first must not take the others with it. Nor may they wait for hours for one that crashed.
    # shellcheck disable=SC2016
    srun --unbuffered --kill-on-bad-exit=0 --wait=600 "${srun_options[@]}" "${container[@]}" \
        sh -c 'set -eu
            cd "$SLURM_SUBMIT_DIR"
            export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
            '"$rank"'
            exec "$@"' rank "${bind[@]}" python -m "$@"
}
