#!/bin/sh
# Debian packages that some tests need: a browser for the report, strace for a benchmark, and Slurm
# with its accounting for tests/slurm. Installs them where that is possible; elsewhere those tests say so and are skipped.
set -eu
PATH=$PATH:/usr/sbin

packages=
command -v chromium >/dev/null 2>&1 || packages=chromium
command -v strace >/dev/null 2>&1 || packages="$packages strace"
for program in munged slurmctld slurmd sbatch slurmdbd mariadbd my_print_defaults; do
    command -v "$program" >/dev/null 2>&1 && continue
    packages="$packages munge slurmctld slurmd slurm-client slurmdbd"
    packages="$packages mariadb-server-core mariadb-client-core"
    break
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing $packages for the tests"
    # shellcheck disable=SC2086  # a list
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $packages >/dev/null
else
    echo "this user cannot install $packages: tests that need them will be skipped"
fi
