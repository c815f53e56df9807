"""All objects of the daemon, each built once and whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from agentlab import version
from agentlab.config import Config
from agentlab.config_proxmox import Proxmox
from agentlab.daemon.context import Daemon
from agentlab.engine.runner import Runner
from agentlab.engine.step import Observer
from agentlab.errors import Invalid, Unsupported
from agentlab.hypervisor.base import (
    Checks,
    Finding,
    Hypervisor,
    TemplateOrder,
    TemplateReport,
)
from agentlab.model.ids import new_id, unknown
from agentlab.network.fence import Fence
from agentlab.network.settings import NetworkSettings
from agentlab.operations import kinds
from agentlab.operations.context import TemplateBuilder, TemplateChecker, World
from agentlab.runner_file import runner_bytes
from agentlab.secret import Secret
from agentlab.store import settings
from agentlab.store.db import Store

if TYPE_CHECKING:
    from agentlab.hypervisor.proxmox.node import NodeTools
    from agentlab.hypervisor.proxmox.settings import Settings
    from agentlab.hypervisor.proxmox.transport import Transport

_TEMPLATE = "debian-12"  # what the recipe makes
_PATIENCE = 3.0  # the engine comes back, and its thread is free meanwhile


@dataclass(frozen=True, slots=True)
class Built:
    """What is built for one hypervisor.  `own_taps` False: it makes the taps itself."""

    hypervisor: Hypervisor
    build_template: TemplateBuilder
    check_template: TemplateChecker
    own_taps: bool
    checks: Checks


def build_world(config: Config, store: Store) -> World:
    """The installation: its name and its key are made with the database and stay."""
    with store.write() as tx:
        installation = settings.ensure(tx, "installation", new_id())
        key = settings.ensure(tx, "key", Secret.generate().reveal())
    built = BUILDERS[config.hypervisor](config, installation)
    return World(
        config=config,
        store=store,
        hypervisor=built.hypervisor,
        fence=Fence(_network(config, installation, own_taps=built.own_taps)),
        build_template=built.build_template,
        installation=installation,
        key=Secret(key),
        checks=built.checks,
        check_template=built.check_template,
    )


def _local(config: Config, _: str) -> Built:
    from agentlab.hypervisor.local.checks import local_checks
    from agentlab.hypervisor.local.driver import LocalHypervisor
    from agentlab.hypervisor.local.template import NAME, build_template, template_key

    runner_file = runner_bytes()

    def build(order: TemplateOrder, on_step: Callable[[str], None]) -> None:
        if order.name != NAME:
            raise unknown("template", order.name, [NAME])
        if order.image or order.storage:
            raise Unsupported(
                "cannot build a template from a file, or on a storage: those are for Proxmox",
                hint="the recipe alone makes templates for `hypervisor: local`",
            )
        build_template(config.template_dir, runner_file, on_step=on_step)

    def check(name: str) -> TemplateReport:
        if name != NAME:
            raise unknown("template", name, [NAME])
        (found,) = hypervisor.templates()
        lacks = Finding("template", "it is not built", "agentlab template build")
        return TemplateReport(name, found.detail, () if found.ready else (lacks,))

    hypervisor = LocalHypervisor(
        root=config.machine_dir,
        volume_dir=config.volume_dir,
        template_dir=config.template_dir,
        template_key=template_key(runner_file),
        start_mode=cast("Literal['auto', 'cold', 'memory']", config.start),
        patience=_PATIENCE,
        accelerator=cast("Literal['auto', 'kvm', 'tcg']", config.accelerator),
    )
    return Built(hypervisor, build, check, own_taps=True, checks=local_checks())


def _proxmox(config: Config, installation: str) -> Built:
    from agentlab.hypervisor.proxmox.checks import ProxmoxChecks
    from agentlab.hypervisor.proxmox.driver import ProxmoxHypervisor
    from agentlab.hypervisor.proxmox.node import NodeTools
    from agentlab.hypervisor.proxmox.rights import Scope
    from agentlab.hypervisor.proxmox.settings import Settings

    given = _given(config)
    transport, tools = TRANSPORTS[given.backend](config), NodeTools(given.node)
    driver = Settings(
        node=given.node,
        bridge=config.network.bridge,
        vmids=config.vmids,
        volume_vmids=given.volume_vmids,
        pool=given.pool,
        storage=given.storage,
        full=given.full_clone,
        node_limit=given.tasks_per_node,
        template_limit=given.clones_per_template,
        storage_limit=given.clones_per_storage,
    )
    checks = ProxmoxChecks(
        transport=transport,
        node=given.node,
        scope=Scope(config.vmids.start, config.network.bridge, pool=given.pool),
        template=given.template_vmid,
        storage=given.storage,
        token_id=given.token.reveal().partition("=")[0] if given.token else "",
    )
    build, check = _proxmox_templates(config, installation, transport, driver, tools)
    return Built(
        ProxmoxHypervisor(transport, driver, tools),
        build,
        check,
        own_taps=False,
        checks=checks.table(),
    )


def _proxmox_templates(
    config: Config, installation: str, transport: Transport, driver: Settings, tools: NodeTools
) -> tuple[TemplateBuilder, TemplateChecker]:
    from agentlab.hypervisor.image.plan import plan_image
    from agentlab.hypervisor.load import Gate
    from agentlab.hypervisor.proxmox.tasks import Api
    from agentlab.hypervisor.proxmox.template import Order, Templates

    api = Api(transport, Gate({}, queue=driver.queue_limit), patience=driver.patience)
    templates, first = Templates(api, driver, tools), _given(config).template_vmid
    runner_file, folder = runner_bytes(), config.template_dir

    def build(order: TemplateOrder, on_step: Callable[[str], None]) -> None:
        if not order.image and order.name != _TEMPLATE:
            raise unknown("template", order.name, [_TEMPLATE])
        image = plan_image(folder, runner_file, order.image, on_step)
        templates.build(
            Order(
                order.name,
                installation,
                image.key,
                image.make,
                first=first,
                work=folder,
                storage=order.storage,
            ),
            on_step,
        )

    return build, templates.check


def _given(config: Config) -> Proxmox:
    if config.proxmox is None:
        raise Invalid(f"{config.path}: hypervisor is not proxmox")
    return config.proxmox


def _api(config: Config) -> Transport:
    from agentlab.hypervisor.proxmox.rest import RestTransport, Tls

    given = _given(config)
    if given.token is None:
        raise Invalid(f"{config.path}: proxmox_backend is not api")
    tls = Tls(ca_file=given.ca_file, fingerprint=given.fingerprint, insecure=given.insecure)
    return RestTransport(given.url, given.token, tls)


def _shell(config: Config) -> Transport:
    from agentlab.hypervisor.proxmox.pvesh import PveshTransport

    if os.geteuid() != 0:
        raise Invalid(
            f"{config.path}: proxmox_backend is shell, and pvesh is for root alone",
            hint="run agentlabd as root, or set `proxmox_backend: api` with a token",
        )
    return PveshTransport(_given(config).node, config.pvesh_dir)


BUILDERS: Mapping[str, Callable[[Config, str], Built]] = {"local": _local, "proxmox": _proxmox}
TRANSPORTS: Mapping[str, Callable[[Config], Transport]] = {"api": _api, "shell": _shell}


def _network(config: Config, installation: str, *, own_taps: bool) -> NetworkSettings:
    return NetworkSettings(
        installation=installation,
        bridge=config.network.bridge,
        subnet=config.network.subnet,
        host=config.network.host,
        guest_port=config.guest_port,
        dns=config.network.dns,
        own_taps=own_taps,
    )


def build_daemon(world: World, observer: Observer) -> Daemon:
    """The engine with all operations, and what requests are given; nothing runs yet."""
    runner = Runner(world.store, kinds(world), workers=world.config.workers, observer=observer)
    return Daemon(world, runner, commit=version.commit())
