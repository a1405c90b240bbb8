"""Making clips leaves this process as it was."""

import os

from made_clips import make_clips


def test_no_thread_keeps_a_real_time_priority(tmp_path):
    make_clips(tmp_path)
    assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {os.SCHED_OTHER}
