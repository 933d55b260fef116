#!/usr/bin/env bash
# `make run`: serve ./lunar-data with a thin LUN `demo` and say how to attach it. Ends with Ctrl-C.
set -euo pipefail
lunar=$1
data=${LUNAR_DATA:-./lunar-data}
listen=${LUNAR_DEMO_LISTEN:-tcp://127.0.0.1:10809}

ready=$(mktemp)
trap 'rm -f "$ready"' EXIT
"$lunar" serve --data "$data" --listen "$listen" --listen "unix://$(realpath -m "$data")/nbd.sock" >"$ready" &
server=$!
stopped=
trap 'stopped=1; kill -TERM "$server" 2>/dev/null || true' INT TERM

until [ -s "$ready" ]; do
	kill -0 "$server" 2>/dev/null || { wait "$server"; exit $?; }
	sleep 0.1
done
cat "$ready"
"$lunar" lun show demo --data "$data" >/dev/null 2>&1 || "$lunar" lun create demo 1G --data "$data"

tcp=$(sed -nE 's|^ready .*nbd=tcp://([^ ]+).*|\1|p' "$ready")
host=${tcp%:*}
port=${tcp##*:}
cat <<TEXT

LUN demo is served. In another terminal:

  Linux block device   sudo modprobe nbd && sudo nbd-client $host $port /dev/nbd0 -N demo -C 2
                       sudo mkfs.ext4 /dev/nbd0 && sudo mount /dev/nbd0 /mnt
                       (detach: sudo umount /mnt && sudo nbd-client -d /dev/nbd0)
  QEMU disk            qemu-system-x86_64 -drive driver=nbd,host=$host,port=$port,export=demo,if=virtio
  libnbd               nbdinfo nbd://$tcp/demo      nbdcopy nbd://$tcp/demo demo.img
                       nbdsh -u nbd://$tcp/demo -c 'print(h.get_size())'

  Snapshot, rollback   $lunar snapshot create demo@before
                       $lunar rollback demo@before
  Everything else      $lunar --help

Ctrl-C stops the server; ./lunar-data stays.
TEXT
status=0
wait "$server" || status=$?
# A signal ends the first wait at once; the second one gets the server's own exit status.
if [ -n "$stopped" ]; then
	status=0
	wait "$server" || status=$?
fi
exit "$status"
