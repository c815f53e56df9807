"""`template.build`: makes a template, or finds it made."""

from __future__ import annotations

from agentlab.engine.step import Call, Operation, Result, Step
from agentlab.hypervisor.base import TemplateOrder
from agentlab.operations.context import World
from agentlab.store import events

KIND = "template.build"
_BUILD = 3600.0


def operation(world: World) -> Operation:
    """One step: the builder itself finds what an interrupted build has left."""

    def build(call: Call) -> Result:
        def tell(text: str) -> None:
            with call.store.write() as tx:
                events.append(
                    tx,
                    "template.step",
                    text,
                    operation=call.operation.id,
                    facts={"text": text},
                )

        asked = {key: str(value) for key, value in call.operation.input.items()}
        world.build_template(
            TemplateOrder(
                asked["template"],
                image=asked.get("image", ""),
                storage=asked.get("storage", ""),
            ),
            tell,
        )
        return None

    return Operation(KIND, [Step("build", build, _BUILD)])
