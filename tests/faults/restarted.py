"""A process that is started again whenever it ends, as a container engine would, and continued when it is stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

START_S = 60.0
MAX_STARTS = 40  # of one process; more are one that cannot start


class Restarted:
    """`python -m MODULE ARGUMENTS`, which says on stdout when it is ready. The first start may have other variables."""

    def __init__(self, module, arguments, environment, log, first_environment=None):
        self.exits = []  # how each process ended
        self.stopped_s = 2.5  # after so many seconds, one that is stopped is continued: some leases
        self._command = [sys.executable, "-m", module, *arguments, "--exit-with-parent"]
        self._log = log
        self._changed = threading.Condition()
        self._closing = False
        self._num_ready = 0
        self._start(first_environment or environment)
        self._thread = threading.Thread(target=self._look_after, args=(environment,))
        self._thread.start()
        self._await_ready(1)

    def kill(self):
        """End it as by kill -9, and wait until it is back."""
        self._end(signal.SIGKILL)

    def terminate(self):
        """Ask it to end; return the code it ended with and after how many seconds, when it is back."""
        begun = time.monotonic()
        self._end(signal.SIGTERM)
        return self.exits[-1], self._ended_s - begun

    def send_signal(self, number):
        self.process.send_signal(number)

    def close(self):
        with self._changed:
            self._closing = True
            self.process.kill()
        self._thread.join()

    def _end(self, number):
        times = self._num_ready
        self.process.send_signal(number)
        self._await_ready(times + 1)

    def _await_ready(self, times):
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_ready >= times or not self._thread.is_alive(), START_S)

    def _start(self, environment):
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
        )

    def _look_after(self, environment):
        while True:
            if self.process.stdout.readline():
                with self._changed:
                    self._num_ready += 1
                    self._changed.notify_all()
            self._continue_while_stopped()
            self.exits.append(self.process.wait())
            self._ended_s = time.monotonic()
            self.process.stdin.close()
            self.process.stdout.close()
            with self._changed:
                if self._closing or len(self.exits) == MAX_STARTS:
                    return
                self._start(environment)

    def _continue_while_stopped(self):
        """Return when it has ended."""
        pid = self.process.pid
        with contextlib.suppress(ChildProcessError):  # who sent it a signal has seen that it has ended
            while os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == os.CLD_STOPPED:
                os.waitid(os.P_PID, pid, os.WSTOPPED)  # seen: a later one is another
                time.sleep(self.stopped_s)
                self.process.send_signal(signal.SIGCONT)
