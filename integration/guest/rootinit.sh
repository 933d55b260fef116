#!/bin/sh
# Process 1 of a root file system on a disk: as init.sh, whose initramfs has loaded the modules and mounted /dev.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
nc -ll -p 7000 -e /bin/sh &
echo GUEST-READY
while :; do sleep 1000; done
