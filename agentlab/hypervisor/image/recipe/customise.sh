#!/bin/sh
# Run by mmdebstrap on the host with the new root file system as $1, before it is packed.
# What belongs to the image and needs no program of the guest is in tree/ instead.
set -eu
root=$1

# Nothing of the building host's package sources stays.
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* \
    "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/apt/auth.conf.d/* \
    "$root"/etc/apt/trusted.gpg.d/*mmdebstrap*

# A small initrd: only what finds the root disk of a virtual machine, and the disc with its
# settings: systemd asks whether there is one before it has loaded any module itself.
cat >"$root"/etc/initramfs-tools/conf.d/agentlab <<END
MODULES=list
COMPRESS=lz4
BUSYBOX=n
FSTYPE=ext4
RESUME=none
END
printf '%s\n' virtio_pci virtio_blk virtio_scsi sd_mod sr_mod ext4 >"$root"/etc/initramfs-tools/modules
chroot "$root" update-initramfs -u -k all

chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash agent
chroot "$root" passwd --lock root
chroot "$root" passwd --lock agent

# Units that a throw-away machine does not need. cloud-init's last stages have nothing to do
# here (cloud.cfg), and each costs seconds under emulation for finding that out.
for unit in \
    apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    logrotate.timer man-db.timer systemd-tmpfiles-clean.timer motd-news.timer \
    getty@tty1.service getty.target serial-getty@ttyS0.service console-getty.service \
    systemd-pstore.service systemd-rfkill.socket systemd-rfkill.service \
    systemd-journal-flush.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-machine-id-commit.service \
    systemd-ask-password-wall.path systemd-ask-password-console.path \
    systemd-networkd-wait-online.service systemd-timesyncd.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-fs-fuse-connections.mount sys-kernel-config.mount proc-sys-fs-binfmt_misc.automount \
    systemd-networkd.socket \
    systemd-network-generator.service modprobe@dm_mod.service modprobe@loop.service \
    modprobe@configfs.service modprobe@drm.service modprobe@fuse.service modprobe@efi_pstore.service \
    keyboard-setup.service console-setup.service networking.service \
    sudo.service systemd-binfmt.service systemd-hwdb-update.service ldconfig.service \
    cloud-config.service cloud-final.service cloud-init-hotplugd.socket cloud-init-hotplugd.service
do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# logind is started when it is asked, which shutdown(8) does, and so the guest agent.
rm "$root"/usr/lib/systemd/system/multi-user.target.wants/systemd-logind.service
# sshd is started by a connection, so that it costs nothing before and needs no keys at boot.
chroot "$root" systemctl disable ssh.service
chroot "$root" systemctl enable systemd-networkd.service ssh.socket qemu-guest-agent.service
for unit in agentlab-runner.service agentlab-work.service; do
    ln -sf "../$unit" "$root/etc/systemd/system/multi-user.target.wants/$unit"
done

# A clone makes these itself.
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd/random-seed
: >"$root"/etc/machine-id
echo agentlab >"$root"/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 agentlab\n' >"$root"/etc/hosts
echo '/dev/vda / ext4 errors=remount-ro,noatime 0 1' >"$root"/etc/fstab
rm -f "$root"/etc/resolv.conf "$root"/etc/cloud/cloud.cfg.d/*
: >"$root"/etc/resolv.conf

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* \
    "$root"/var/cache/debconf/*-old "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/tmp/*
