"""The zygotes of one host: which there are, within which bounds, and when a worker comes from one.

Owns their number, memory and age, and the rule that every doubt means a plain start. Leaves the processes to
``zygote_process`` and what is known of an environment to ``lessons``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from envbuilder import BuildSettings, EnvironmentGone, find, hold
from gpu_worker import lessons
from gpu_worker.assignment import Assignment
from gpu_worker.settings import ZygoteLimits
from gpu_worker.zygote_process import Newborn, NoBirth, ZygoteProcess

logger = logging.getLogger(__name__)

#: How long importing ahead may take.
IMPORT_SECONDS = 300.0
_BOUNDS_SECONDS = 5.0


class Zygotes:
    """Zygotes by the file of what their app's starts have shown (see ``lessons.file_of``).

    Args:
        limits: see ZygoteLimits.
        builds: where environments lie.
    """

    def __init__(self, limits: ZygoteLimits, builds: BuildSettings) -> None:
        self._limits = limits
        self._builds = builds
        self._zygotes: dict[str, ZygoteProcess] = {}
        self._seen: dict[str, int] = {}
        #: what exceeds the limit by itself; importing it again after each start would be for nothing
        self._too_large: set[str] = set()
        self._bounds_at = 0.0
        #: births under way: children of this process that it does not know yet
        self.births = 0
        self.enabled = limits.count > 0 and sys.platform == "linux"

    def pids(self) -> set[int]:
        """Their processes, which are children of this one."""
        return {zygote.pid for zygote in self._zygotes.values()}

    async def bear(self, assignment: Assignment, command: Sequence[str], environ: Mapping[str, str]) -> Newborn | None:
        """A worker from the zygote of its environment; None: start it plainly."""
        file = assignment.lessons_file
        zygote = self._zygotes.get(file) if file is not None else None
        if file is None or zygote is None:
            return None
        if zygote.platform_environ != assignment.platform_environ:
            self._end(file)  # what it has imported may have read other addresses
            return None
        zygote.hear()
        known = lessons.read(file)
        if not zygote.ready or zygote.refusal or known.no_zygote or known.doubted:
            reason = zygote.refusal or known.no_zygote or ("still importing" if not zygote.ready else "doubted")
            logger.debug("worker %s is started plainly: its zygote: %s", assignment.worker_id, reason)
            return None
        self.births += 1
        try:
            return await zygote.bear(command, environ)
        except NoBirth as failure:
            logger.debug("worker %s is started plainly: its zygote: %s", assignment.worker_id, failure)
            if self._zygotes.get(file) is zygote:
                self._end(file)
            return None
        finally:
            self.births -= 1

    def can_bear(self, assignment: Assignment) -> bool:
        """Whether the zygote of its environment is ready."""
        zygote = self._zygotes.get(assignment.lessons_file or "")
        return zygote is not None and zygote.ready and zygote.refusal is None

    def look(self, running: Sequence[Assignment]) -> None:
        """Start what successful starts have taught, hear of what is ready, keep within the bounds.

        Args:
            running: the host's workers of now.
        """
        if not self.enabled:
            return
        for assignment in running:
            if assignment.lessons_file is not None:
                self._consider(assignment, assignment.lessons_file)
        for file, zygote in list(self._zygotes.items()):
            zygote.hear()
            if not zygote.ready and time.monotonic() - zygote.started_at > IMPORT_SECONDS:
                zygote.refuse(f"its imports took more than {IMPORT_SECONDS:g} s")
            if zygote.refusal:
                self._refused(file, zygote)
        if time.monotonic() >= self._bounds_at:
            self._bounds_at = time.monotonic() + _BOUNDS_SECONDS
            self._keep_within_bounds()

    def close(self) -> None:
        """End them all; from now on every start is a plain one."""
        self.enabled = False
        for file in list(self._zygotes):
            self._end(file)

    # --- one ----------------------------------------------------------------------------------------------------------

    def _consider(self, assignment: Assignment, file: str) -> None:
        try:
            changed = os.stat(file).st_mtime_ns
        except OSError:
            return  # no start of it has succeeded yet
        if self._seen.get(file) == changed or not all(zygote.ready for zygote in self._zygotes.values()):
            return  # one after the other, for each takes a whole core while it imports
        self._seen[file] = changed
        known = lessons.read(file)
        before = self._zygotes.get(file)
        # More modules than before are no reason: small differences between starts would never let one be ready.
        if before is not None and (known.no_zygote or set(before.modules) - set(known.modules)):
            self._end(file)
            before = None
        wanted = known.modules and not known.no_zygote and not known.doubted and file not in self._too_large
        if before is None and wanted:
            self._start(assignment, file, known.modules)

    def _start(self, assignment: Assignment, file: str, modules: Sequence[str]) -> None:
        while len(self._zygotes) >= self._limits.count:
            self._end(self._least_recent())
        held = ExitStack()
        environment = find(Path(assignment.environment_dir).parent.name, self._builds)
        try:
            if environment is None:
                raise EnvironmentGone("it was removed")
            held.enter_context(hold(environment))
            mine = replace(assignment, parent_pid=os.getpid())
            self._zygotes[file] = ZygoteProcess(mine, modules, held)
        except (EnvironmentGone, OSError) as error:
            held.close()
            logger.debug("no zygote for %s: %s", file, error)

    def _refused(self, file: str, zygote: ZygoteProcess) -> None:
        self._end(file)
        logger.debug("no zygote for %s: %s", file, zygote.refusal)
        if zygote.lasting:
            try:
                refusal = zygote.refusal or ""
                lessons.write(file, lessons.after_refusal(lessons.read(file), refusal, zygote.package))
            except OSError as error:
                logger.debug("%s cannot be kept in mind: %s", file, error)

    def _end(self, file: str) -> None:
        # It stays in _seen: the next one comes after the next start, not at once in the place of one that was idle.
        self._zygotes.pop(file).end()

    # --- all ----------------------------------------------------------------------------------------------------------

    def _keep_within_bounds(self) -> None:
        limit = time.monotonic() - self._limits.idle_seconds
        for file, zygote in list(self._zygotes.items()):
            if zygote.used_at < limit:
                self._end(file)
        while self._zygotes and sum(z.memory() for z in self._zygotes.values()) > self._limits.memory:
            file = self._least_recent()
            if len(self._zygotes) == 1:
                logger.debug("no zygote for %s: it is larger than KEEPWARM_ZYGOTES_MAX_BYTES", file)
                self._too_large.add(file)
            self._end(file)

    def _least_recent(self) -> str:
        return min(self._zygotes, key=lambda file: self._zygotes[file].used_at)
