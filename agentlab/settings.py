"""Every setting and every key of a profile: its default, whose type it must have, and its meaning.

The loaders and docs/config.md read these tables.  A dot stands for a mapping inside; a default of
"" is none, or is made from others as the meaning says.
"""

from __future__ import annotations

SETTINGS: dict[str, tuple[object, str]] = {
    "data_dir": ("/var/lib/agentlab", "database, machines and bundles"),
    "artifact_dir": ("", "what jobs hand back; default: `artifacts` under `data_dir`"),
    "socket": ("/run/agentlab/agentlabd.sock", "the Unix socket of the API, mode 0660"),
    "socket_group": ("agentlab", "group of the socket; left alone when there is no such group"),
    "profiles_dir": ("/etc/agentlab/profiles", "one YAML file per profile"),
    "hypervisor": (
        "local",
        "`local`: QEMU processes on this machine; `proxmox`: VMs of the Proxmox VE on this host",
    ),
    "proxmox_backend": (
        "api",
        "`api`: the REST API with a token; `shell`: the same calls by `pvesh`, as root, no token",
    ),
    "vmid_range": ([1000, 1999], "first and last VMID that sandboxes may have"),
    "workers": (32, "operations that are worked on at the same moment"),
    "network.bridge": ("vmbr1", "the bridge of the sandboxes; letters and digits, at most 10"),
    "network.subnet": ("10.77.0.0/16", "addresses of the sandboxes"),
    "network.host": ("10.77.0.1", "the address of this host on the bridge"),
    "network.dns": (["1.1.1.1", "9.9.9.9"], "resolvers of sandboxes with `network: nat`"),
    "guest_listener.port": (8844, "TCP port on `network.host` for the guests"),
    "local.template_dir": ("", "built templates; default: `templates` under `data_dir`"),
    "local.start": ("auto", "`cold`, `memory`, or `auto`: memory where there is no KVM"),
    "local.accelerator": ("auto", "`kvm`, `tcg`, or `auto`: KVM when it boots a guest"),
    "proxmox.url": ("https://localhost:8006", "the REST API; for `proxmox_backend: api`"),
    "proxmox.token_file": (
        "/etc/agentlab/secrets/proxmox-token",
        "a file with `USER@REALM!NAME=SECRET`, mode 0600; for `proxmox_backend: api`",
    ),
    "proxmox.ca_file": (
        "",
        "certificates to trust; default: `/etc/pve/pve-root-ca.pem`, or else the system's",
    ),
    "proxmox.fingerprint": ("", "SHA-256 of the one certificate to trust, instead of `ca_file`"),
    "proxmox.insecure": (False, "`true`: do not check the certificate at all; for tests only"),
    "proxmox.node": ("", "this host's name in Proxmox; default: its short host name"),
    "proxmox.pool": ("", "the resource pool that sandboxes are made in, when rights are on a pool"),
    "proxmox.storage": (
        "",
        "storage of full clones, of templates that are built and of volumes; default: that of the template",
    ),
    "proxmox.full_clone": (False, "copy the template's disk, instead of a linked clone"),
    "proxmox.template_vmid": (
        9000,
        "the VMID of the template that `agentlab template build` makes",
    ),
    "proxmox.volume_vmids": (
        [990000, 990999],
        "VMIDs that only volumes carry, never VMs; apart from `vmid_range`",
    ),
    "proxmox.tasks_per_node": (10, "tasks that we have at the same moment on one node, 1 to 100"),
    "proxmox.clones_per_template": (3, "clones of one template at the same moment, 1 to 100"),
    "proxmox.clones_per_storage": (3, "clones to one storage at the same moment, 1 to 100"),
    "limits.sandboxes": (0, "sandboxes that may be there at once, stopped ones too; 0: no limit"),
    "limits.cores": (0, "virtual CPUs of all sandboxes that have power; 0: no limit"),
    "limits.memory": ("", "memory of all sandboxes that have power, like `48G`; default: no limit"),
    "lease.grace": (
        "5m",
        "what a lease that ended while the daemon was down is given before it counts as ended",
    ),
    "workspace.size": ("20G", "size of a workspace that is made without being asked how large"),
    "retention.days": (
        30,
        "days that finished jobs, artifacts and events are kept; those without the daemon do not count",
    ),
}

PROFILE: dict[str, tuple[object, str]] = {
    "name": ("", "may be left out; otherwise the file's own name"),
    "template": ("debian-12", "the template that machines are cloned from"),
    "cores": (2, "virtual CPUs, 1 to 128"),
    "memory": ("2G", "like `512M`; a bare number is MiB"),
    "disk": ("8G", "root disk, at least the template's; a bare number is GiB"),
    "network": ("nat", "`nat`: the Internet and no private network; `off`: nothing"),
    "ttl": ("1h", "lease of the sandbox from the moment that its task is delivered"),
    "handback": (
        "2m",
        "the end of the lease that is kept for handing back; the agent has the rest",
    ),
    "after": (
        "destroy",
        "what becomes of the sandbox: `destroy`, `stop`, or `keep` until its lease ends",
    ),
    "idle_stop": (
        "",
        "stop a sandbox in which nothing has happened for so long, like `30m`; default: never",
    ),
    "mode": ("", "a word for the agent, as `AGENTLAB_JOB_MODE`"),
    "agent.command": ("", "`claude`, `codex`, `opencode`, or any command, for `/bin/sh -c`"),
    "agent.bubblewrap": (False, "wrap the agent in bubblewrap as well"),
    "agent.env": ({}, "further environment of the agent"),
    "limits.log": ("16M", "how much of the agent's log is kept"),
    "limits.artifact": ("1G", "the largest file that is taken"),
    "limits.artifacts": ("4G", "all files of a job in sum"),
    "limits.artifact_count": (1000, "how many files"),
}
