"""The sweep's cases: which failpoints act how, in which story, and how the job must end."""

from dataclasses import dataclass

STALL = "stall:2.5"  # of a server or worker: some leases long


@dataclass(frozen=True)
class Case:
    """A job under one rule. It must succeed, or fail with a message that begins so."""

    rule: str
    story: str = "train"
    failed: str = ""
    warned: str = ""  # what one of its events must say

    @property
    def point(self):
        return self.rule.partition("=")[0]

    def __str__(self):
        return f"{self.rule}-{self.story}"


def at(point, *actions, hit="", **rest):
    """One case for each action at a point; `hit` says at which hit."""
    return [Case(f"{point}={action}{hit}", **rest) for action in actions]


DEFECT = "a defect in Lockstep: RuntimeError('failpoint "

SERVER = [
    *at("server.start.locked", "die", story="recovery"),
    *at("server.start.ready", "die", story="recovery"),
    *at("server.submit.received", "die", STALL, "defect"),
    *at("server.submit.stored", "die", STALL),
    *at("server.upload.piece", "die", STALL, "fail", "full"),
    *at("server.upload.kept", "die", "fail", "full"),
    *at("server.job.begun", "die"),
    *at("server.job.attempt_stored", "die", STALL),
    *at("server.job.attempt_stored", "defect", failed=DEFECT),
    *at("server.job.saving", "die", STALL),
    *at("server.job.saving", "defect", failed=DEFECT),
    *at("server.job.concluded", "die", STALL),
    *at("server.job.deleted", "die", story="delete"),
    *at("server.job.resumed", "die", story="pause"),
    *at("server.checkpoint.begun", "die", STALL),
    *at("server.checkpoint.begun", "fail", "full", warned="the job goes on without a checkpoint"),
    *at("server.checkpoint.written", "die", hit="@2"),
    *at("server.models.begun", "die", STALL),
    *at("server.models.begun", "fail", "full"),
    *at("server.models.written", "die", STALL),
    *at("server.file.begun", "die", "fail", "full"),
    *at("server.file.half_written", "die", STALL, "stop", "fail", "full"),
    *at("server.file.half_written", "die", hit="@2"),
    *at("server.file.written", "die", "fail", "full"),
    *at("server.file.synced", "die", "fail"),
    *at("server.file.renamed", "die", "fail"),
    *at("server.file.renamed", "die", hit="@2"),
    *at("server.journal.flush", "die", hit="@4"),
    *at("server.store.written", "die", STALL, "stop", hit="@4"),
    *at("server.store.committed", "die", STALL, hit="@4"),
    *at("server.exchange.hello", "die", STALL),
    *at("server.exchange.read", "die", STALL, "stop", hit="@50"),
    *at("server.exchange.read", "defect", hit="@50", failed=DEFECT),
    *at("server.exchange.taken_in", "die", STALL, hit="@50"),
    *at("server.exchange.write", "die", STALL, hit="@50"),
    *at("server.update.chunk", "die", STALL, hit="@30"),
    *at("server.update.chunk", "defect", hit="@30", failed=DEFECT),
    *at("server.step.done", "die", STALL, "stop", hit="@20"),
    *at("server.run.tick", "die"),
    *at("server.run.tick", "defect", failed=DEFECT),
    *at("server.run.ended", "die", STALL),
    *at("server.fleet.heard", "die", STALL),
    *at("server.fleet.orders", "die", STALL),
    *at("server.halt.begun", "die", STALL, story="halt"),
    *at("server.halt.kept", "die", STALL, story="halt"),
]

WORKER = [
    *at("worker.dial", "die", STALL, "stop"),
    *at("worker.hello", "die", STALL, "stop"),
    *at("worker.welcome", "die", STALL, "stop"),
    *at("worker.read", "die", STALL, "stop", hit="@40"),
    *at("worker.chunk", "die", STALL, "stop", hit="@40"),
    *at("worker.prepare", "die", STALL, "stop", "defect", hit="@20"),
    *at("worker.work", "die", STALL, "stop", "defect", hit="@20"),
    *at("worker.shard", "die", STALL, "stop", "defect", hit="@20"),
    *at("worker.layer", "die", STALL, "stop", "defect", hit="@50"),
    *at("worker.send", "die", STALL, "stop", "defect", hit="@40"),
    *at("worker.sent", "die", STALL, "stop", hit="@20"),
    *at("worker.heartbeat", "die", STALL, "stop", "defect"),
    *at("worker.leaving", "die", STALL, "stop", story="second_job"),
    *at("worker.goodbye", "die", STALL, "stop"),
]

FLEET = [
    *at("fleet.connected", "die", STALL),
    *at("fleet.orders", "die", "stop", "defect"),
    *at("fleet.load", "die"),
    *at("fleet.loaded", "die", STALL),
    *at("fleet.start", "die"),
    *at("fleet.started", "die", "stop"),
    *at("fleet.leave", "die", story="second_job"),
    *at("fleet.ended", "die", "defect", story="next_job"),
    *at("fleet.look", "die", "defect"),
    *at("fleet.tick", "die", "defect"),
    *at("fleet.tell", "die", "defect"),
]

# In processes of Ray's own, which have the environment of the fleet that starts it
TASK = [
    *at("fleet.task", "die", STALL),
    *at("fleet.task", "fail", "defect", failed="the data cannot be loaded: "),
]

CASES = SERVER + WORKER + FLEET + TASK
