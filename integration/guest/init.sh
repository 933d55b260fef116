#!/bin/sh
# The guest's process 1: mounts, modules, network, then a shell behind TCP port 7000 for the tests.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
load boot
root=$(sed -n 's/.*lunar\.root=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$root" ]; then
	mount -t ext4 "$root" /mnt
	umount /proc /sys
	mount --move /dev /mnt/dev
	exec switch_root /mnt /sbin/init
fi
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
# Each connection is a shell of its own.
nc -ll -p 7000 -e /bin/sh &
echo GUEST-READY
while :; do sleep 1000; done
