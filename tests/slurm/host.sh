#!/bin/sh
# Process 1 of a host of the test cluster, in namespaces of its own: sets the host up, says "up",
# and then only reaps what its daemons leave behind. It ends when the cluster's folder is gone.
set -eu
name=$1
folder=$2

echo "$name" > /proc/sys/kernel/hostname
mount --bind "$folder/etc/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs "$folder/local"

echo up
exec > /dev/null
while [ -d "$folder" ]; do
    sleep 5 &
    wait "$!"
done
