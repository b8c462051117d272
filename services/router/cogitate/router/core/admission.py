"""Who is placed now, who waits for room, and who is refused: the desk with a queue in front.

::

    declare --room, and nobody waits for it--> Granted
            --never can work-----------------> Denied
            --no room------------------------> Queued --its turn, and room--> Granted
                                                      --its time is over----> Denied EVICTED
            --would wait too long------------> Denied REJECTED, at once

Only what has not run yet waits. A declaration that may not wait, and every replacement, is placed
before all that do: an agent that runs is not to starve behind those that have not begun.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from cogitate.router.core.desk import Desk
from cogitate.router.core.queue import LineKey, Queue, Waiting, line_of
from cogitate.router.core.types import Declare, Denied, Granted, Queued

# So many are answered in one go; the others in the next, so that nothing waits for all of them.
MAX_SERVED = 16

Answer = tuple[Waiting, Granted | Denied]


@dataclass(slots=True)
class Admission:
    """Owns who waits. Belongs to the desk's event loop; no method awaits."""

    desk: Desk
    queue: Queue = field(default_factory=Queue)
    _running: dict[str, tuple[LineKey, float]] = field(default_factory=dict)
    gave_way: list[Waiting] = field(default_factory=list)  # evicted, to be told by `serve`

    def declare(self, command: Declare, holder: int, now: float) -> Granted | Denied | Queued:
        """Places a declaration, puts it in the queue, or denies it."""
        self._leave(command.contemplation_id, now)
        if not command.max_wait_s or not self.queue.max_count:
            return self.desk.declare(command, holder, now)
        if self.queue.has_line(command) and self.desk.may_run(command, now):
            return self._wait(command, holder, now)
        answer = self.desk.declare(command, holder, now)
        if isinstance(answer, Denied) and answer.retryable:
            return self._wait(command, holder, now)
        if isinstance(answer, Granted):
            self._began(command, now)
        return answer

    def serve(self, now: float) -> tuple[list[Answer], bool]:
        """Answers those whose turn and room, or whose end, has come; and whether more may be.

        O(lines) placements, and one more for each that is granted.
        """
        answers: list[Answer] = [(item, _evicted(item)) for item in self.gave_way]
        self.gave_way.clear()
        for head in self.queue.heads():
            item: Waiting | None = head
            while item is not None:
                if len(answers) >= MAX_SERVED:
                    return answers, True
                answer = self.desk.declare(item.command, item.holder, now)
                if isinstance(answer, Granted):
                    self.queue.take(item, now)
                    self._began(item.command, now)
                elif answer.retryable and self.queue.end_s(item) > now:
                    break
                else:
                    self.queue.remove(item.command.contemplation_id, now)
                    answer = _waited(answer, item, now)
                answers.append((item, answer))
                item = self.queue.next_of(item)
        for item in self.queue.overdue(now):
            ahead = self.queue.ahead_of(item.command.contemplation_id)
            self.queue.remove(item.command.contemplation_id, now)
            answers.append((item, _overdue(item, ahead, now)))
        return answers, False

    def release(self, contemplation_id: str, holder: int, now: float, *, ran: bool = True) -> bool:
        """Ends a lease, or a wait; says whether this holder had it.

        `ran`: what it held ran until now, which tells how long others like it may take.
        """
        waits = contemplation_id in self.waiting_of(holder)
        if waits:
            self._leave(contemplation_id, now)
        ended = self.desk.release(contemplation_id, holder, now if ran else None)
        began = self._running.pop(contemplation_id, None) if ended else None
        if began is not None and ran:
            key, since_s = began
            self.queue.ran(key, now - since_s)
        return ended or waits

    def rollback(self, granted: Granted) -> None:
        """Takes back a grant that could not be delivered."""
        self._running.pop(granted.contemplation_id, None)
        self.desk.rollback(granted)

    def waiting_of(self, holder: int) -> list[str]:
        """The contemplations of a holder that wait for an answer."""
        evicted = [w.command.contemplation_id for w in self.gave_way if w.holder == holder]
        return self.queue.of(holder) + evicted

    def _leave(self, contemplation_id: str, now: float) -> None:
        """Nobody is to be told of it any more."""
        self.queue.remove(contemplation_id, now)
        left = [w for w in self.gave_way if w.command.contemplation_id != contemplation_id]
        self.gave_way = left

    def end(self, holder: int, now: float) -> tuple[str, ...]:
        """Ends all leases and waits of a holder; returns the contemplations that had a lease."""
        for contemplation_id in self.waiting_of(holder):
            self._leave(contemplation_id, now)
        ended = self.desk.end(holder)
        for contemplation_id in ended:
            self._running.pop(contemplation_id, None)
        return ended

    def _began(self, command: Declare, now: float) -> None:
        """Notes it, to learn how long such run: only what can be queued, hence is new."""
        self._running[command.contemplation_id] = (line_of(command), now)

    def _wait(self, command: Declare, holder: int, now: float) -> Denied | Queued:
        item = Waiting(command, holder, now)
        expected_s = self.queue.expected_s(item, now)
        may_s = self.queue.end_s(item) - now
        if may_s <= 0 or (expected_s is not None and expected_s > may_s):
            about = "not known" if expected_s is None else f"about {expected_s:.1f} s"
            message = (
                f"the wait for {command.gangs[0].model} is {about}, and this may wait {may_s:.1f} "
                "s to be done in time; ask again later, with more time, or with fewer agents"
            )
            return _refused(item, message, expected_s)
        gives_way = self.queue.add(item, now)
        if gives_way is item:
            message = (
                f"{len(self.queue)} contemplations wait for room, the most that may, and none of "
                "another tenant with more; ask again later"
            )
            return _refused(item, message, expected_s)
        if gives_way is not None:
            self.gave_way.append(gives_way)
        ahead = self.queue.ahead_of(command.contemplation_id)
        return Queued(command.contemplation_id, command.attempt, ahead, expected_s)


def _refused(item: Waiting, message: str, retry_after_s: float | None) -> Denied:
    command = item.command
    return Denied(
        command.contemplation_id, command.attempt, "REJECTED", message, retryable=True,
        waited_s=0.0, retry_after_s=retry_after_s,
    )  # fmt: skip


def _evicted(item: Waiting) -> Denied:
    message = "it gave its place in the full queue to a tenant with less in it; ask again later"
    command = item.command
    return Denied(
        command.contemplation_id, command.attempt, "EVICTED", message, retryable=True, waited_s=0.0
    )


def _overdue(item: Waiting, ahead: int, now: float) -> Denied:
    waited_s = now - item.since_s
    message = (
        f"it waited {waited_s:.1f} s for room, the longest it may, and {ahead} were before it; "
        "ask again later"
    )
    command = item.command
    return Denied(
        command.contemplation_id, command.attempt, "EVICTED", message, retryable=True,
        waited_s=waited_s,
    )  # fmt: skip


def _waited(answer: Denied, item: Waiting, now: float) -> Denied:
    """Whose turn it was is told what there was no room for, or why it can never work now."""
    reason = "EVICTED" if answer.retryable else answer.reason
    return dataclasses.replace(answer, reason=reason, waited_s=now - item.since_s)
