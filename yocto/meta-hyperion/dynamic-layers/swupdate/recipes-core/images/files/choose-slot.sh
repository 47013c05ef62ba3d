#!/bin/sh
# SWUpdate calls this before (preinst) and after (postinst) it writes. The slot is chosen last, when
# all else is on disk: a power cut before leaves the device with what it ran.
set -eu

case ${1:-} in
    preinst) exit 0 ;;
    postinst) ;;
    *)
        echo "choose-slot: preinst or postinst is expected" >&2
        exit 1
        ;;
esac

case $(nvbootctrl get-current-slot) in
    0) other=1 ;;
    1) other=0 ;;
    *)
        echo "choose-slot: nvbootctrl does not say which slot is running" >&2
        exit 1
        ;;
esac
sync
nvbootctrl set-active-boot-slot "$other"
echo "choose-slot: the next boot is from slot $other"
