#!/bin/sh
# load GROUP: insert the modules of a group in order, those that are there already passed over.
while read -r module; do
	name=${module%.ko}
	[ -e "/sys/module/$(echo "$name" | tr - _)" ] || insmod "/modules/$module" || exit 1
done <"/modules/order.$1"
