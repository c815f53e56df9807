"""What checks a file system on the host, as text for /bin/sh; `fsck.py` runs it and judges.

It is the first process of namespaces of its own: with its end, however that comes, all that it
started is killed and nothing stays mounted.  What reads the file system is nobody, without
capabilities, network or a view of the host's processes: its content is a guest's.
"""

from __future__ import annotations

# SCRIPT image|device PATH REPAIR SECONDS MEMORY BLOCKDEV EXPORT
# stdout: what e2fsck said, and at last one line of facts: `facts WORD=VALUE ...`.
SCRIPT = r"""
set -u
kind=$1 disk=$2 repair=$3 seconds=$4 memory=$5 blockdev=${6-} export=${7-}
limit=16384 nobody=65534 place=/tmp/volume status= statuses=

die() {
    echo "fsck: $*" >&2
    exit 1
}

confined() {
    timeout -s KILL "$seconds" prlimit --as="$memory" --core=0 \
        setpriv --reuid $nobody --regid $nobody --clear-groups --no-new-privs \
        --bounding-set=-all --inh-caps=-all \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@" </dev/null
}

# The image is mounted over itself, as what the guest sees: only here, and others see it as it is.
open_image() {
    # The room that a repair which was cut off had taken and not used.
    case $repair:$blockdev in
        1:*'"qcow2"'*) qemu-img check -q -f qcow2 -r leaks "$disk" >&2 || exit 3 ;;
    esac
    before=$(stat -c %d "$disk") || die "cannot read $disk"
    qemu-storage-daemon --blockdev "$blockdev" --export "$export" >/dev/null &
    daemon=$!
    while [ "$(stat -c %d "$disk")" = "$before" ]; do
        kill -0 $daemon 2>/dev/null || exit 3
        sleep 0.02
    done
    chown $nobody:$nobody "$disk" || die "cannot give $disk to nobody"
    # Nobody may enter no directory on the way to it, so that it gets a name where it may.
    exec 6<"$disk"
    place && : >$place && mount -c --bind /proc/self/fd/6 $place || die "cannot mount $disk"
    exec 6<&-
}

place() {
    mount -t tmpfs -o size=64k,mode=755 none /tmp
}

close_image() {
    kill -TERM $daemon && wait $daemon || die "the export of $disk did not end well"
}

# A device of the same number that nobody may open, and no other.
open_device() {
    numbers=$(stat -L -c '0x%t 0x%T' "$disk") || die "cannot read $disk"
    # shellcheck disable=SC2086 # two numbers
    place && mknod -m 600 $place b $numbers && chown $nobody:$nobody $place ||
        die "cannot make a device"
}

# Where ext2/3/4 puts the first of its copies of the superblock, as `BLOCKSIZE BLOCK`.
places() {
    for size in 1024 2048 4096; do
        for group in 1 3 5 7 9 25 27 49; do
            echo $size $((group * 8 * size + (size == 1024)))
        done
    done
}

zeros() {
    [ "$(dd if="$disk" bs="$1" skip="$2" count="$3" status=none | tr -d '\0' | head -c 1 | wc -c)" = 0 ]
}

blank() {
    zeros 1048576 0 4 || return 1
    places | while read -r size block; do zeros "$size" "$block" 1 || exit 1; done
}

# Runs e2fsck once; the end of what it says goes to stdout.
look() {
    status=$({ { confined e2fsck "$@" "$disk" 2>&1; echo $? >&3; } | tail -c $limit >&4; } 3>&1)
    statuses="$statuses${statuses:+,}$status"
}

# Where there is a copy of the superblock, as `BLOCKSIZE:BLOCK`.
copies() {
    places | while read -r size block; do
        magic=$(dd if="$disk" bs="$size" skip="$block" count=1 status=none |
            od -An -tx1 -j56 -N2 | tr -d ' ')
        [ "$magic" != 53ef ] || echo "$size:$block"
    done | head -n 3
}

# Whether it has changed something, so that only another look tells how it is now.  12 is the end
# after it put a copy of the superblock back that says that the journal was not replayed: such
# copies are made by a kernel that grows the file system, and the next look goes on from there.
changed() {
    [ "$status" -gt 0 ] && [ "$status" -lt 16 ] && [ "$status" != 8 ]
}

mend() {
    for _ in 1 2 3 4; do
        look -f -y
        changed || break
    done
    # By itself it tries the first copy of the superblock only.
    [ "$status" = 8 ] && [ -z "$type" ] || return 0
    for copy in $(copies); do
        look -f -y -B "${copy%:*}" -b "${copy#*:}"
        [ "$status" = 0 ] || changed || continue
        look -f -y
        ! changed || look -f -y
        break
    done
}

exec 4>&1
open_"$kind"
disk=$place
confined test -r $disk || die "nobody cannot read it"
[ "$repair" = 0 ] || confined test -w $disk || die "nobody cannot write it"
type=$(confined blkid -p -o value -s TYPE "$disk" 2>/dev/null |
    head -c 100 | tr -cd 'A-Za-z0-9_-')
empty=0 journal=0 errors=0
case $type in
    ext2 | ext3 | ext4)
        head=$(confined dumpe2fs -h "$disk" 2>/dev/null | head -c 65536 | tr -d '\0')
        case $head in *"features:"*needs_recovery*) journal=1 ;; esac
        case $head in *"Filesystem state:"*"with errors"*) errors=1 ;; esac
        ;;
    '')
        ! blank || empty=1
        ;;
esac
case $type:$empty in
    ext[234]:0 | :0)
        if [ "$repair" = 1 ]; then mend; else look -f -n; fi
        ;;
esac
[ "$kind" = device ] || close_image
echo
echo "facts type=$type empty=$empty journal=$journal errors=$errors statuses=$statuses"
"""
