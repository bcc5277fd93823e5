"""The scripts of a replica's vLLM container, in plain Python: vLLM's image has nothing of ours."""

from __future__ import annotations

from llm_tuning.agent.contract import AGENT_PORT, PLAN_FILE
from llm_tuning.agent.starting import DRAINED_FILE, RUN_DIR
from llm_tuning.engines.vllm.log import FOLLOWS
from llm_tuning.pod.contract import TERMINATION_LOG

WAIT_FOR_DRAIN_SECONDS = 165
SILENT_LOOKS = 10
"""Half a second apart: an agent whose port is closed for so long never started or has ended, and answers no client."""
KEPT_BYTES = 65536
"""Of the log's end: the cause stands above the tracebacks of all processes."""
CAUSE_BYTES = 2000
"""Of a termination message, which the kubelet cuts to 4096."""

START_ENGINE = rf"""
import json, os, re, signal, subprocess, sys, threading
with open("{RUN_DIR}/{PLAN_FILE}") as file:
    plan = json.load(file)
environment = dict(os.environ) | plan["environment"]
engine = subprocess.Popen(plan["command"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
for each in (signal.SIGTERM, signal.SIGINT):
    signal.signal(each, lambda number, frame: os.kill(engine.pid, number))
end = b""
def copy():
    global end
    while chunk := os.read(engine.stdout.fileno(), {KEPT_BYTES}):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        end = (end + chunk)[-{KEPT_BYTES}:]
copier = threading.Thread(target=copy, daemon=True)
copier.start()
pid = 0
while pid != engine.pid:  # the first process of a container is the parent of all that lost theirs
    pid, status = os.wait()
copier.join(2)  # a process that is left may hold the pipe
code = os.waitstatus_to_exitcode(status)
before = rb"(\(\w+ pid=\d+\) )?([A-Z]+ \S+ \S+ \[[^]]*\] )?"
error = rb"(?m)^" + before + rb"[\w.]*(Error|Exception): .*(\n" + before + rb"  .*)*"
causes = [found for found in re.finditer(error, end) if not re.search(rb"{FOLLOWS}", found[0])]
if causes:  # vLLM also ends with 0 when another of its processes has died
    with open("{TERMINATION_LOG}", "wb") as file:
        file.write(end[causes[-1].start():][:{CAUSE_BYTES}])
os._exit(code if code >= 0 else 128 - code)
"""
"""vLLM as a child: its log is passed on, and the error that ended it becomes the termination message.

The kubelet's own choice, the last 2 KiB of the log, is the API server's traceback: it says that another process failed.
"""

WAIT_FOR_AGENT = f"""
import os, socket, time
end, silent = time.monotonic() + {WAIT_FOR_DRAIN_SECONDS}, 0
while time.monotonic() < end and silent < {SILENT_LOOKS} and not os.path.exists("{RUN_DIR}/{DRAINED_FILE}"):
    time.sleep(0.5)
    try:
        socket.create_connection(("127.0.0.1", {AGENT_PORT}), 5).close()
        silent = 0
    except OSError as error:
        silent = silent + 1 if isinstance(error, ConnectionRefusedError) else 0
"""
"""Before SIGTERM: clients are answered through the agent until it has drained."""
