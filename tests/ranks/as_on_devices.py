"""Imported by a zygote: its ranks take their main thread for one that waits for devices, so that
nothing raises an error in it before the watchdog bites."""

from llm_pretrain.world import World

World.waits_for_devices = property(lambda self: self.size > 1)  # type: ignore[method-assign,assignment]
