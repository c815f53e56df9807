#!/bin/sh
# Run on the host, as root in namespaces of its own: adapt.sh IMAGE OFFSET SIZE MOUNT FILES
# Mounts the root file system of a raw image, installs what sandboxes need and is missing, puts
# FILES in, and takes out what a clone must make itself.
set -eu
image=$1 offset=$2 size=$3 root=$4 files=$5

say() {
    echo "adapt: $*" >&2
    exit 1
}

inside() {
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root \
        DEBIAN_FRONTEND=noninteractive ${http_proxy:+http_proxy="$http_proxy"} \
        ${https_proxy:+https_proxy="$https_proxy"} chroot "$root" "$@"
}

has() {
    inside /bin/sh -c "command -v $1" >/dev/null 2>&1
}

mount -o "loop,offset=$offset,sizelimit=$size,discard" "$image" "$root" ||
    say "cannot mount its root file system"
[ -e "$root/etc/os-release" ] || say "its largest partition holds no operating system"
[ -d "$root/etc/systemd/system" ] || say "it does not start by systemd"

# No device, process or runtime file of the host is seen inside.
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 666 "$root/dev/tty" c 5 0
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/run/lock"

# Names resolve as on the host; a link into /run leads to a file that goes with us.
resolver=$root/etc/resolv.conf
if [ -L "$resolver" ]; then
    target=$(readlink "$resolver")
    case $target in /*) ;; *) target=/etc/$target ;; esac
    target=$(realpath -m "$target")
    case $target in
        /run/*) mkdir -p "$root$(dirname "$target")" && cat /etc/resolv.conf >"$root$target" ;;
    esac
elif [ -e "$resolver" ]; then
    mount --bind /etc/resolv.conf "$resolver"
else
    :
fi

packages=
[ -e "$root/usr/sbin/qemu-ga" ] || [ -e "$root/usr/bin/qemu-ga" ] || packages="$packages qemu-guest-agent"
has cloud-init || packages="$packages cloud-init"
has git || packages="$packages git"
has python3 || packages="$packages python3"
has bwrap || packages="$packages bubblewrap"
{ has mkfs.ext4 && has e2fsck && has resize2fs; } || packages="$packages e2fsprogs"
[ -e "$root/etc/ssl/certs/ca-certificates.crt" ] || [ -e "$root/etc/pki/tls/certs/ca-bundle.crt" ] ||
    packages="$packages ca-certificates"
if [ -n "$packages" ]; then
    has apt-get || say "it lacks$packages, and has no apt-get to install them"
    # A service is not to be started by its package here.
    policy=$root/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || mv "$policy" "$policy.agentlab"
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    inside apt-get -q update >&2 || say "cannot reach its package sources (apt-get update failed)"
    # shellcheck disable=SC2086 # a list of package names
    inside apt-get -q -y --no-install-recommends install $packages >&2 ||
        say "cannot install$packages (apt-get install failed)"
    inside apt-get -q clean
    rm -rf "$root"/var/lib/apt/lists/*
    rm "$policy"
    [ ! -e "$policy.agentlab" ] || mv "$policy.agentlab" "$policy"
fi
inside python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    say "its Python is older than 3.11, which the runner needs"
inside id agent >/dev/null 2>&1 ||
    inside useradd --create-home --user-group --shell /bin/bash agent ||
    say "cannot make the user agent"
inside passwd --lock agent >/dev/null

cp -R "$files/." "$root/"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
for unit in agentlab-runner.service agentlab-work.service; do
    ln -sf "../$unit" "$root/etc/systemd/system/multi-user.target.wants/$unit"
done

# A clone makes these itself.
inside cloud-init clean --logs >/dev/null 2>&1 || rm -rf "$root"/var/lib/cloud/*
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed
[ -L "$root/var/lib/dbus/machine-id" ] || rm -f "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"

for place in etc/resolv.conf tmp run proc dev; do
    ! mountpoint -q "$root/$place" || umount "$root/$place"
done
fstrim "$root" 2>/dev/null || true
umount "$root"
