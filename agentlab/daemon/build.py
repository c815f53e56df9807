"""All objects of the daemon, each built once and whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from agentlab import version
from agentlab.config import Config
from agentlab.daemon.context import Daemon
from agentlab.engine.runner import Runner
from agentlab.engine.step import Observer
from agentlab.hypervisor.local.driver import LocalHypervisor
from agentlab.hypervisor.local.template import NAME, build_template, template_key
from agentlab.model.ids import new_id, unknown
from agentlab.network.fence import Fence
from agentlab.network.settings import NetworkSettings
from agentlab.operations import kinds
from agentlab.operations.context import World
from agentlab.runner_file import runner_bytes
from agentlab.secret import Secret
from agentlab.store import settings
from agentlab.store.db import Store

_PATIENCE = 3.0  # the engine comes back, and its thread is free meanwhile


def build_world(config: Config, store: Store) -> World:
    """The installation: its name and its key are made with the database and stay."""
    with store.write() as tx:
        installation = settings.ensure(tx, "installation", new_id())
        key = settings.ensure(tx, "key", Secret.generate().reveal())
    runner_file = runner_bytes()

    def build(name: str, on_step: Callable[[str], None]) -> None:
        if name != NAME:
            raise unknown("template", name, [NAME])
        build_template(config.template_dir, runner_file, on_step=on_step)

    return World(
        config=config,
        store=store,
        hypervisor=LocalHypervisor(
            root=config.machine_dir,
            template_dir=config.template_dir,
            template_key=template_key(runner_file),
            start_mode=cast("Literal['auto', 'cold', 'memory']", config.start),
            patience=_PATIENCE,
            accelerator=cast("Literal['auto', 'kvm', 'tcg']", config.accelerator),
        ),
        fence=Fence(_network(config, installation)),
        build_template=build,
        installation=installation,
        key=Secret(key),
    )


def _network(config: Config, installation: str) -> NetworkSettings:
    return NetworkSettings(
        installation=installation,
        bridge=config.network.bridge,
        subnet=config.network.subnet,
        host=config.network.host,
        guest_port=config.guest_port,
        dns=config.network.dns,
    )


def build_daemon(world: World, observer: Observer) -> Daemon:
    """The engine with all operations, and what requests are given; nothing runs yet."""
    runner = Runner(world.store, kinds(world), workers=world.config.workers, observer=observer)
    return Daemon(world, runner, commit=version.commit())
